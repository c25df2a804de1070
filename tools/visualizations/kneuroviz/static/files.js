// The files of a dataset, read by their path: those of a folder one by one, those of a zip file through its directory.

export class ReadError extends Error {
  constructor(status, what) {
    const why = {
      401: "you are not logged in",
      403: "you may not read it. Ask its owner to share the history or the dataset",
      404: "it is not there any more",
    };
    super(`${what} cannot be opened: ${why[status] ?? `the server answered HTTP ${status}`}.`);
  }
}

const encode = (path) => path.split("/").map(encodeURIComponent).join("/");


async function fetchOrNull(url, what, options) {
  const response = await fetch(url, options);
  if (response.status === 404) return null;
  if (!response.ok) throw new ReadError(response.status, what);
  return response;
}

// A folder that the server sends file by file.
export class Folder {
  // `list` gives the paths of all files; it may be slow, and undefined where nothing can be listed.
  constructor(url, what, list) {
    this.url = url.replace(/\/+$/, "");
    this.what = what;
    this.list = list;
  }

  address(folder) {
    return `${this.url}/${folder === "" ? "" : `${encode(folder)}/`}`;
  }

  async read(path) {
    const response = await fetchOrNull(`${this.url}/${encode(path)}`, this.what);
    return response === null ? null : response.arrayBuffer();
  }

  async has(path) {
    return (await fetchOrNull(`${this.url}/${encode(path)}`, this.what, { method: "HEAD" })) !== null;
  }
}

const END_OF_DIRECTORY = 0x06054b50;
const END_BYTES = 22;
const ZIP64_LOCATOR = 0x07064b50;
const ZIP64_LOCATOR_BYTES = 20;
const LONGEST_COMMENT = 65535;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;
const DEFLATED = 8;

// A zip file that is read in ranges: its directory at the end, then single files.
export class Zip {
  constructor(url, what) {
    this.url = url;
    this.what = what;
  }

  address(folder) {
    return `${this.url}|zip:${folder === "" ? "" : `${encode(folder)}/`}`;
  }

  async #range(range) {
    const response = await fetch(this.url, { headers: { Range: `bytes=${range}` } });
    if (!response.ok) throw new ReadError(response.status, this.what);
    if (response.status !== 206) throw new Error(`${this.what} cannot be opened: its server does not send parts of files.`);
    return new DataView(await response.arrayBuffer());
  }

  async open() {
    const tail = await this.#range(`-${END_BYTES + LONGEST_COMMENT + ZIP64_LOCATOR_BYTES}`);
    let end = tail.byteLength - END_BYTES;
    while (end >= 0 && tail.getUint32(end, true) !== END_OF_DIRECTORY) --end;
    if (end < 0) throw new Error(`${this.what} cannot be opened: it is not a whole zip file.`);
    const [size, start] = await this.#directory(tail, end);
    this.entries = size === 0 ? new Map() : parseDirectory(await this.#range(`${start}-${start + size - 1}`));
    return this;
  }

  // Size and start of the directory; those of a large file (zip64) are in a record of its own.
  async #directory(tail, end) {
    const locator = end - ZIP64_LOCATOR_BYTES;
    if (locator < 0 || tail.getUint32(locator, true) !== ZIP64_LOCATOR) {
      return [tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
    }
    const at = Number(tail.getBigUint64(locator + 8, true));
    const record = await this.#range(`${at}-${at + 55}`);
    return [Number(record.getBigUint64(40, true)), Number(record.getBigUint64(48, true))];
  }

  // Whether the data, which are the largest files, are compressed.
  get isCompressed() {
    const [largest] = [...this.entries.values()].sort((one, other) => other.size - one.size);
    return largest?.method === DEFLATED;
  }

  async list() {
    return [...this.entries.keys()];
  }

  async has(path) {
    return this.entries.has(path);
  }

  async read(path) {
    const entry = this.entries.get(path);
    if (entry === undefined) return null;
    const local = await this.#range(`${entry.start}-${entry.start + LOCAL_BYTES - 1}`);
    const begin = entry.start + LOCAL_BYTES + local.getUint16(26, true) + local.getUint16(28, true);
    const stored = entry.size === 0 ? new ArrayBuffer(0) : (await this.#range(`${begin}-${begin + entry.size - 1}`)).buffer;
    if (entry.method !== DEFLATED) return stored;
    const inflated = new Blob([stored]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Response(inflated).arrayBuffer();
  }
}

function parseDirectory(view) {
  const entries = new Map();
  for (let at = 0; at + ENTRY_BYTES <= view.byteLength; ) {
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const path = new TextDecoder().decode(new Uint8Array(view.buffer, at + ENTRY_BYTES, name));
    const entry = { method: view.getUint16(at + 10, true), size: view.getUint32(at + 20, true), start: view.getUint32(at + 42, true) };
    readZip64(view, at + ENTRY_BYTES + name, extra, entry, view.getUint32(at + 24, true));
    if (!path.endsWith("/")) entries.set(path, entry);
    at += ENTRY_BYTES + name + extra + comment;
  }
  return entries;
}

// What does not fit into 32 bits follows in the extra field with id 1: original size, size, start, each only if needed.
function readZip64(view, begin, length, entry, originalSize) {
  const FULL = 0xffffffff;
  for (let at = begin; at + 4 <= begin + length; at += 4 + view.getUint16(at + 2, true)) {
    if (view.getUint16(at, true) !== 1) continue;
    let value = at + 4 + (originalSize === FULL ? 8 : 0);
    for (const key of ["size", "start"]) {
      if (entry[key] !== FULL) continue;
      entry[key] = Number(view.getBigUint64(value, true));
      value += 8;
    }
  }
}

export async function readJson(files, path) {
  const content = await files.read(path);
  if (content === null) return undefined;
  try {
    return JSON.parse(new TextDecoder().decode(content));
  } catch {
    throw new Error(`${files.what} cannot be opened: its file '${path}' is damaged (no JSON).`);
  }
}
