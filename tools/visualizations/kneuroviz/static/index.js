// The KNeuroViz plugin. Galaxy puts this module into an empty frame beside <div id="app" data-incoming='{"root", ...}'>.
// Neuroglancer keeps its state in the address of its page, so the client runs in a frame of its own within.
import { Folder, ReadError, Zip } from "./files.js";
import { findVolumes, layersOf, newState, withMoreLayers } from "./volumes.js";

const PLUGIN = "kneuroviz";
const STATUS_MS = 10_000; // a message that needs no answer goes by itself
const SCHEME = /^[a-z][a-z0-9+.-]*:/i;

const app = document.getElementById("app");
const { root, visualization_config: config } = JSON.parse(app.dataset.incoming);

// ---- Galaxy

async function galaxy(path, options = {}) {
  const headers = options.body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(`${root}api/${path}`, { headers, ...options });
  if (response.ok) return response.json();
  const reason = await response.json().catch(() => ({}));
  throw new Error(reason.err_msg ?? `Galaxy answered HTTP ${response.status}`);
}

async function readDataset(id) {
  const response = await fetch(`${root}api/datasets/${id}`);
  if (!response.ok) throw new ReadError(response.status, "This dataset");
  const dataset = await response.json();
  if (dataset.deleted || dataset.purged) throw new Error(`'${dataset.name}' was deleted.`);
  if (!["ok", "deferred"].includes(dataset.state)) {
    throw new Error(`'${dataset.name}' is not ready: its state is '${dataset.state}'.`);
  }
  return dataset;
}

async function filesOf(dataset) {
  const what = `'${dataset.name}'`;
  const api = `${root}api/datasets/${dataset.id}`;
  const elsewhere = dataset.state === "deferred" ? dataset.sources?.[0]?.source_uri : undefined;
  if (dataset.extension.endsWith("zip")) return new Zip(elsewhere ?? `${api}/display`, what).open();
  if (elsewhere !== undefined) return new Folder(elsewhere, what);
  const list = async () => {
    const found = await galaxy(`datasets/${dataset.id}/extra_files`);
    return found.filter((file) => file.class === "File").map((file) => file.path);
  };
  return new Folder(`${api}/extra_files/raw`, what, list);
}

// ---- addresses: absolute for Neuroglancer; saved from Galaxy's root, so that they hold when Galaxy gets another name

function mapSources(state, change) {
  const mapped = (source) => {
    if (typeof source === "string") return change(source);
    if (Array.isArray(source)) return source.map(mapped);
    return typeof source?.url === "string" ? { ...source, url: change(source.url) } : source;
  };
  return { ...state, layers: (state.layers ?? []).map((layer) => ({ ...layer, source: mapped(layer.source) })) };
}

const withAbsoluteSources = (state) =>
  mapSources(state, (url) => (SCHEME.test(url) ? url : root + url.replace(/^\/+/, "")));
const withSavedSources = (state) =>
  mapSources(state, (url) => (url.startsWith(root) ? `/${url.slice(root.length)}` : url));

// ---- the view

// What a dataset shows: a saved view as it is, else its volumes.
async function openDataset(id) {
  const dataset = await readDataset(id);
  if (dataset.extension === "kneuroviz_view") {
    const response = await fetch(`${root}api/datasets/${id}/display?raw=true`);
    if (!response.ok) throw new ReadError(response.status, `'${dataset.name}'`);
    const state = await response.json().catch(() => undefined);
    if (!Array.isArray(state?.layers)) throw new Error(`'${dataset.name}' is no saved view: it lists no layers.`);
    return { dataset, state: withAbsoluteSources(state), unfinished: [] };
  }
  const files = await filesOf(dataset);
  const volumes = await findVolumes(files, dataset.metadata_store_root ?? "", dataset.extension.includes("zarr"));
  const layers = volumes.flatMap((volume) =>
    layersOf(volume, volumes.length > 1 ? `${dataset.name} ${volume.folder}` : dataset.name),
  );
  const unfinished = volumes.filter((volume) => volume.unfinished).map(() => dataset.name);
  return { dataset, state: newState(dataset.name, volumes, layers), unfinished };
}

async function openSaved() {
  const dataset = config.dataset_id ? await readDataset(config.dataset_id).catch(() => undefined) : undefined;
  return { dataset, state: withAbsoluteSources(config.settings.state), unfinished: [] };
}

// ---- the page

const STYLE = `
  body { margin: 0; }
  #app { display: flex; flex-direction: column; height: 100vh; font: 14px sans-serif; color: #ddd; background: #16191d; }
  #app .bar { display: flex; flex: none; gap: 8px; align-items: center; padding: 4px 8px; }
  #app .bar > * { font: inherit; padding: 3px 8px; white-space: nowrap; }
  #app .bar button, #app .bar select, #app .bar input { background: #2b3138; color: #eee; border: 1px solid #566; border-radius: 3px; }
  #app .bar select { flex: 0 1 14em; min-width: 6em; }
  #app .bar input { flex: 0 1 18em; min-width: 6em; }
  #app .status { position: absolute; top: 42px; right: 12px; padding: 6px 12px; background: #2b3138; border-radius: 3px; }
  #app .status:empty { display: none; }
  #app iframe { flex: 1; border: 0; width: 100%; background: #000; }
  #app .message { max-width: 46em; margin: 3em auto; padding: 0 2em; line-height: 1.5; }
  #app .message button { font: inherit; margin-top: 1em; padding: 4px 12px; }
`;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function showMessage(text, ...more) {
  const message = element("div", { className: "message" }, element("p", { textContent: text }), ...more);
  message.setAttribute("role", "alert");
  app.replaceChildren(element("style", { textContent: STYLE }), message);
}

// Resolves when the person wants to see it nevertheless.
function confirmUnfinished(name) {
  return new Promise((resolve) => {
    const button = element("button", { textContent: "Show it nevertheless", onclick: resolve });
    showMessage(
      `'${name}' is unfinished: the job that wrote it did not end, so parts of it are missing and would be black. Run the job again.`,
      button,
    );
  });
}

async function startClient() {
  if (document.createElement("canvas").getContext("webgl2") === null) {
    throw new Error("This browser does not offer WebGL 2, which KNeuroViz draws with: update it, or allow it to use the graphics card.");
  }
  const address = new URL("client/index.html", import.meta.url).href;
  if (!(await fetch(address, { method: "HEAD" })).ok) {
    throw new Error("KNeuroViz was not installed completely on this Galaxy: the folder 'client' of the plugin is missing.");
  }
  const frame = element("iframe", { title: "KNeuroViz", allow: "fullscreen; clipboard-write" });
  const loaded = new Promise((resolve) => frame.addEventListener("load", resolve, { once: true }));
  frame.src = address;
  return { frame, loaded };
}

function makeBar(view) {
  const status = element("span", { className: "status" });
  status.setAttribute("role", "status");
  let clear;
  const say = (text) => {
    clearTimeout(clear);
    status.textContent = text;
    clear = setTimeout(() => status.replaceChildren(), STATUS_MS);
  };
  const attempt = async (action) => {
    try {
      await action();
    } catch (error) {
      say(error.message);
    }
  };
  const bar = element("div", { className: "bar" });
  if (view.dataset?.history_id !== undefined) bar.append(makePicker(view, say, attempt));
  const title = element("input", { value: view.title });
  title.setAttribute("aria-label", "Name of the view");
  const save = element("button", { textContent: "Save view", onclick: () => attempt(() => saveView(view, title.value, say)) });
  bar.append(title, save, status);
  return bar;
}

function makePicker(view, say, attempt) {
  const picker = element("select");
  picker.setAttribute("aria-label", "Add a dataset");
  const first = () => element("option", { value: "", textContent: "Add a dataset…" });
  const refresh = async () => {
    const { hdas } = await galaxy(`plugins/${PLUGIN}?history_id=${view.dataset.history_id}`);
    picker.replaceChildren(first(), ...hdas.map(({ id, hid, name }) => element("option", { value: id, textContent: `${hid}: ${name}` })));
  };
  const add = async () => {
    const id = picker.value;
    picker.value = "";
    if (id === "") return;
    const added = await openDataset(id);
    if (added.unfinished.length > 0) throw new Error(`'${added.dataset.name}' is unfinished: run the job that wrote it again.`);
    view.show(withMoreLayers(view.state(), added.state.layers));
    say(`Added '${added.dataset.name}'`);
  };
  picker.append(first());
  picker.onfocus = () => attempt(refresh);
  picker.onchange = () => attempt(add);
  refresh().catch(() => picker.remove()); // somebody else's history: Galaxy does not list it
  return picker;
}

async function saveView(view, wanted, say) {
  const title = wanted.trim().length >= 3 ? wanted.trim() : `View ${wanted.trim()}`; // Galaxy asks for three characters
  const state = { ...withSavedSources(view.state()), title };
  const saved = { ...config, settings: { ...config.settings, state } };
  // A Galaxy page that has this view in it takes it over by this message.
  window.postMessage({ from: "galaxy-visualization", visualization_config: saved, visualization_title: title }, "*");
  const body = JSON.stringify({ type: PLUGIN, title, config: saved });
  view.savedId = (await update(view.savedId, body)) ?? (await galaxy("visualizations", { method: "POST", body })).id;
  say(`Saved as '${title}'`);
}

// Writes over what this person saved before; undefined when there is no such view, or it is somebody else's.
async function update(id, body) {
  if (id === null) return undefined;
  const { title, config } = JSON.parse(body);
  const answer = await fetch(`${root}api/visualizations/${id}`, {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ title, config }),
  });
  return answer.ok ? id : undefined;
}

// Galaxy tells the plugin what was saved, not under which id; the page around it has that in its address.
function savedId() {
  return new URLSearchParams(window.parent.location.search).get("visualization_id");
}

async function main() {
  app.replaceChildren(element("style", { textContent: STYLE }));
  const opened = config.settings?.state ? await openSaved() : await openDataset(config.dataset_id);
  if (opened.unfinished.length > 0) await confirmUnfinished(opened.unfinished[0]);
  const { frame, loaded } = await startClient();
  const client = () => frame.contentWindow;
  const view = {
    dataset: opened.dataset,
    title: opened.state.title ?? opened.dataset?.name ?? "View",
    savedId: savedId(),
    state: () => JSON.parse(JSON.stringify(client().viewer.state.toJSON())),
    show: (state) => client().kneuroviz.show(state),
  };
  app.replaceChildren(element("style", { textContent: STYLE }), makeBar(view), frame);
  await loaded;
  if (client().kneuroviz !== undefined) view.show(opened.state); // else the client has said what it lacks
}

main().catch((error) => showMessage(`${error.message}`));
