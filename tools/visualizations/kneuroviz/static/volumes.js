// From the files of a dataset to layers of Neuroglancer: what volumes they hold, and what their metadata say of them.
import { readJson } from "./files.js";

// A file that only the folder of a volume (or of meshes and the like) has; the first one found decides on the format.
const MARKS = ["zarr.json", ".zattrs", ".zarray", "info"];
const JUNK = "__MACOSX/";
const SERIES = "0"; // where Bio-Formats puts the first image of an OME-Zarr
const METRES = {
  angstrom: 1e-10,
  nanometer: 1e-9,
  micrometer: 1e-6,
  millimeter: 1e-3,
  centimeter: 1e-2,
  meter: 1,
};
const KINDS_OF_INFO = {
  neuroglancer_legacy_mesh: "segmentation",
  neuroglancer_multilod_draco: "segmentation",
  neuroglancer_skeletons: "segmentation",
  neuroglancer_annotations_v1: "annotation",
};
const CHANNEL = "c'"; // an axis of which a layer shows one position
// Both are the shaders of `kbrain view-volume`.
const GREY_SHADER = `#uicontrol invlerp contrast
void main() {
  emitGrayscale(contrast());
}
`;
const CHANNEL_SHADER = `#uicontrol invlerp contrast
#uicontrol vec3 color color
void main() {
  float value = contrast();
  if (VOLUME_RENDERING) {
    emitRGBA(vec4(color * value, value));
  } else {
    emitRGB(color * value);
  }
}
`;
const COLORS = ["#00ff00", "#ff00ff", "#00ffff", "#ffff00", "#ff0000", "#0000ff", "#ffffff"];
const SHOWN_CHANNELS = 4; // more at once are mud; the others wait in the layer list

const join = (folder, name) => (folder === "" ? name : `${folder}/${name}`);
const parent = (path) => path.slice(0, Math.max(0, path.lastIndexOf("/")));

async function markIn(files, folder, likely) {
  for (const mark of [likely, ...MARKS.filter((mark) => mark !== likely)]) {
    if (await files.has(join(folder, mark))) return mark;
  }
  return undefined;
}

// Folders with a mark; a folder below such a folder (mesh/, 0/) belongs to it.
function topFolders(paths) {
  const own = paths.filter((path) => !path.startsWith(JUNK) && MARKS.includes(path.split("/").pop()));
  const folders = [...new Set(own.map(parent))];
  return folders.filter((folder) => !folders.some((other) => other !== folder && (other === "" || folder.startsWith(`${other}/`)))).sort();
}

// The volumes in a dataset. `root` is where the volume most likely is: a listing of 100,000 files takes seconds.
export async function findVolumes(files, root, isZarr) {
  const likely = isZarr ? "zarr.json" : "info";
  const mark = await markIn(files, root, likely);
  if (mark !== undefined) return [await openVolume(files, root, mark)];
  const folders = files.list === undefined ? [] : topFolders(await files.list());
  if (folders.length === 0) {
    throw new Error(`${files.what} holds no volume: neither an 'info' file of Neuroglancer nor metadata of a Zarr.`);
  }
  return Promise.all(folders.map(async (folder) => openVolume(files, folder, await markIn(files, folder, likely))));
}

async function openVolume(files, folder, mark) {
  const volume = mark === "info" ? await openPrecomputed(files, folder) : await openZarr(files, folder, mark === "zarr.json");
  if (volume.isSharded && files.isCompressed) {
    throw new Error(
      `${files.what} is a compressed zip file of a volume in shards, of which a browser cannot read parts. Unpack it: edit its ` +
        "attributes and convert it to a folder. Or upload it zipped without compression (zip -0 -r).",
    );
  }
  return { ...volume, folder, unfinished: await isUnfinished(files, folder) };
}

// KBrain marks what it writes: job.json is there from the beginning, complete at the end.
async function isUnfinished(files, folder) {
  return (await files.has(join(folder, ".kbrain/job.json"))) && !(await files.has(join(folder, ".kbrain/complete")));
}

async function openPrecomputed(files, folder) {
  const info = await readJson(files, join(folder, "info"));
  const url = `${files.address(folder)}|neuroglancer-precomputed:`;
  const kind = KINDS_OF_INFO[info?.["@type"]];
  if (kind !== undefined) return { kind, source: { url }, channels: 1 };
  const resolution = info?.scales?.[0]?.resolution;
  if (!Array.isArray(resolution)) throw new Error(`${files.what} cannot be shown: its 'info' file describes no volume.`);
  return {
    kind: info.type === "segmentation" ? "segmentation" : "image",
    source: { url },
    channels: info.num_channels ?? 1,
    channelNames: info.kbrain?.channel_names, // precomputed itself has no names
    isSharded: info.scales.some((scale) => scale.sharding),
    voxelSize: Object.fromEntries(["x", "y", "z"].map((axis, index) => [axis, resolution[index] * METRES.nanometer])),
  };
}

async function openZarr(files, folder, isVersion3) {
  const format = isVersion3 ? "zarr3" : "zarr2";
  const attributes = isVersion3
    ? (await readJson(files, join(folder, "zarr.json")))?.attributes ?? {}
    : (await readJson(files, join(folder, ".zattrs"))) ?? {};
  const ome = attributes.ome ?? attributes;
  if (ome["bioformats2raw.layout"] !== undefined && ome.multiscales === undefined) {
    return openZarr(files, join(folder, SERIES), isVersion3);
  }
  const url = `${files.address(folder)}|${format}:`;
  const image = ome.multiscales?.[0];
  if (image === undefined) return { kind: "image", source: { url }, channels: 1 };
  const axes = (image.axes ?? [..."tczyx"]).map((axis) => axis.name ?? axis);
  const array = await readJson(files, join(folder, join(image.datasets[0].path, isVersion3 ? "zarr.json" : ".zarray")));
  const voxelSize = omeVoxelSize(image, axes);
  return {
    kind: ome["image-label"] === undefined ? "image" : "segmentation",
    source: { url, transform: omeTransform(axes, voxelSize) },
    channels: axes.includes("c") ? array?.shape?.[axes.indexOf("c")] ?? 1 : 1,
    channelNames: (ome.omero?.channels ?? []).map((channel) => channel.label),
    isZarr: true,
    isSharded: (array?.codecs ?? []).some((codec) => codec.name === "sharding_indexed"),
    voxelSize,
  };
}

// Metres per voxel of the finest level; undefined when the units are not said.
function omeVoxelSize(image, axes) {
  const scales = [image.datasets[0], image].map(
    (level) => level.coordinateTransformations?.find((transformation) => transformation.type === "scale")?.scale,
  );
  const entries = ["x", "y", "z"].flatMap((axis) => {
    const index = axes.indexOf(axis);
    if (index === -1) return [];
    const scale = scales.reduce((size, one) => size * (one?.[index] ?? 1), 1);
    return [[axis, scale * METRES[image.axes?.[index]?.unit]]];
  });
  return entries.every(([, size]) => size > 0) ? Object.fromEntries(entries) : undefined;
}

// OME-Zarr puts position 0 in the middle of the first voxel, precomputed at its corner: without the half voxel a volume and
// its labels in the other format would not lie on each other.
function omeTransform(axes, voxelSize) {
  const names = axes.map((axis) => (axis === "c" ? CHANNEL : axis));
  const matrix = names.map((name, row) => [...names.map((_, column) => (row === column ? 1 : 0)), "xyz".includes(name) ? 0.5 : 0]);
  const space = dimensions(voxelSize);
  return { matrix, outputDimensions: Object.fromEntries(names.map((name) => [name, space[name] ?? [1, ""]])) };
}

function dimensions(voxelSize) {
  return Object.fromEntries(["x", "y", "z"].map((axis) => [axis, voxelSize === undefined ? [1, ""] : [voxelSize[axis] ?? 1e-9, "m"]]));
}

// A layer per channel of an image; the contrast is left to the client, which takes it from the data.
export function layersOf(volume, name) {
  if (volume.kind !== "image") return [{ type: volume.kind, name, source: [volume.source] }];
  return Array.from({ length: volume.channels }, (_, channel) => {
    const layer = { type: "image", name, source: volume.source, opacity: 1, shader: GREY_SHADER };
    if (volume.channels === 1 && !volume.source.transform?.outputDimensions[CHANNEL]) return layer;
    if (volume.channels > 1) layer.name = `${name} ${volume.channelNames?.[channel] ?? `channel ${channel}`}`;
    if (volume.isZarr) return { ...layer, localDimensions: { [CHANNEL]: [1, ""] }, localPosition: [channel] };
    return { ...layer, shaderControls: { contrast: { channel: [channel] } } };
  });
}

// Several images add up in colours, labels lie over them; what a person has changed stays.
function dress(layers) {
  const images = layers.filter((layer) => layer.type === "image");
  const taken = new Set(images.map((layer) => layer.shaderControls?.color));
  const free = COLORS.filter((color) => !taken.has(color));
  const several = images.length > 1;
  const dressed = layers.map((layer) => {
    if (layer.type === "segmentation" && [1, undefined].includes(layer.selectedAlpha)) {
      return { ...layer, selectedAlpha: images.length > 0 ? 0.4 : 1 };
    }
    if (!several || layer.shader !== GREY_SHADER) return layer;
    const color = free.shift() ?? COLORS[images.indexOf(layer) % COLORS.length];
    const hidden = images.indexOf(layer) >= SHOWN_CHANNELS ? { visible: false } : {};
    return { ...layer, ...hidden, shader: CHANNEL_SHADER, blend: "additive", shaderControls: { ...layer.shaderControls, color } };
  });
  return [...dressed.filter((layer) => layer.type === "image"), ...dressed.filter((layer) => layer.type !== "image")];
}

function withUniqueNames(layers) {
  const taken = new Set();
  return layers.map((layer) => {
    let name = layer.name;
    for (let number = 2; taken.has(name); ++number) name = `${layer.name} ${number}`;
    taken.add(name);
    return { ...layer, name };
  });
}

export function newState(title, volumes, layers) {
  const measured = volumes.find((volume) => volume.voxelSize !== undefined);
  const flat = measured !== undefined && measured.voxelSize.z === undefined;
  return {
    title,
    dimensions: dimensions(measured?.voxelSize),
    projectionOrientation: [-0.24, 0.36, 0.1, 0.896], // slightly from above and from the side
    layers: withUniqueNames(dress(layers)),
    showScaleBar: true,
    crossSectionBackgroundColor: "#000000",
    hideCrossSectionBackground3D: true,
    layout: flat ? "xy" : "4panel",
    concurrentDownloads: 32, // a Galaxy answers about 40 requests a second, and others use it too
    // Neuroglancer opens this wide panel for every new image layer.
    toolPalettes: { "Shader controls": { query: "type:shaderControl", visible: false } },
  };
}

export function withMoreLayers(state, layers) {
  return { ...state, layers: withUniqueNames(dress([...state.layers, ...layers])) };
}
