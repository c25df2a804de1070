// KNeuroViz: a Neuroglancer client of our own. It keeps its state in the address (#!{...}) as every Neuroglancer does.
// A page made by `kbrain view-volume` names a start state: <meta name="kneuroviz-state" content="state.json">.
import "neuroglancer"; // registers layers, data sources and key-value stores
import { makeDefaultViewer } from "neuroglancer/unstable/ui/default_viewer.js";
import { setDefaultInputEventBindings } from "neuroglancer/unstable/ui/default_input_event_bindings.js";
import { bindDefaultCopyHandler, bindDefaultPasteHandler } from "neuroglancer/unstable/ui/default_clipboard_handling.js";
import { UrlHashBinding } from "neuroglancer/unstable/ui/url_hash_binding.js";
import { StatusMessage } from "neuroglancer/unstable/status.js";
import { contrastFromData } from "./contrast.js";
import { fitToWindow } from "./fit.js";
import { withAbsoluteSources } from "./sources.js";

function showError(text) {
  new StatusMessage().setErrorMessage(text);
}

function bindTitle(viewer) {
  const update = () => {
    const title = viewer.title.value?.trim();
    document.title = title ? `${title} - KNeuroViz` : "KNeuroViz";
  };
  viewer.registerDisposer(viewer.title.changed.add(update));
}

// A volume that cannot be reached would just be black; Neuroglancer tells only in the layer's own panel.
function reportMissingSources(viewer) {
  const told = new Set();
  const look = () => {
    for (const layer of viewer.layerManager.managedLayers) {
      for (const source of layer.layer?.dataSources ?? []) {
        const error = source.loadState?.error;
        if (error === undefined || told.has(source)) continue;
        told.add(source);
        showError(`${layer.name} cannot be shown: ${error.message}`);
      }
    }
  };
  viewer.registerDisposer(viewer.layerManager.readyStateChanged.add(look));
  viewer.registerDisposer(viewer.layerManager.specificationChanged.add(look));
}

function bindAddress(viewer) {
  const binding = new UrlHashBinding(viewer.state, viewer.dataSourceProvider.sharedKvStoreContext, {});
  viewer.registerDisposer(binding);
  viewer.registerDisposer(
    binding.parseError.changed.add(() => {
      const error = binding.parseError.value;
      if (error !== undefined) showError(`The state in the address cannot be read: ${error.message}`);
    }),
  );
  return binding;
}

// Addresses in the state may be relative to the page; without a zoom the volume fits, without a contrast the data decide.
function show(viewer, state) {
  const shown = withAbsoluteSources(state, document.baseURI);
  viewer.state.reset();
  viewer.state.restoreState(shown);
  if (shown.crossSectionScale === undefined) fitToWindow(viewer);
  contrastFromData(viewer, shown);
}

async function loadStartState(viewer, address) {
  const response = await fetch(address, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${address}: HTTP ${response.status}`);
  show(viewer, await response.json());
}

function start() {
  const viewer = (window.viewer = makeDefaultViewer({ showLayerDialog: false, resetStateWhenEmpty: false }));
  setDefaultInputEventBindings(viewer.inputEventBindings);
  bindDefaultCopyHandler(viewer);
  bindDefaultPasteHandler(viewer);
  window.kneuroviz = { show: (state) => show(viewer, state) }; // for a page that has this one in a frame
  bindTitle(viewer);
  reportMissingSources(viewer);
  const binding = bindAddress(viewer);
  const startState = document.querySelector('meta[name="kneuroviz-state"]')?.content;
  const addressHasState = !["", "#", "#!"].includes(location.hash);
  if (startState === undefined || addressHasState) {
    binding.updateFromUrlHash();
  } else {
    loadStartState(viewer, startState).catch((error) => showError(`The view cannot be opened: ${error.message}`));
  }
}

try {
  start();
} catch (error) {
  const message = document.createElement("p");
  message.className = "kneuroviz-message";
  message.textContent = `KNeuroViz cannot start (it needs WebGL 2): ${error.message}`;
  document.body.replaceChildren(message);
}
