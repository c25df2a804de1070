// Contrast of images for which nobody chose one: from the data, as `kbrain view-volume` does it in advance. Neuroglancer by
// itself shows the whole range of the data type, in which 16-bit images are nearly black.
import * as matrix from "neuroglancer/unstable/util/matrix.js";

const PERCENTILES = [0.35, 99.65]; // black and white; a few hot pixels must not decide
const CONTROL = "contrast"; // the shader's, see the states that view-volume writes
const SAMPLES_PER_CHUNK = 20_000;
const SPATIAL = ["x", "y", "z"];

const hasRange = (layer) => layer.shaderControls?.[CONTROL]?.range !== undefined;
const isReady = (managed) => managed.isReady() && managed.layer?.renderLayers?.some((one) => one.multiscaleSource);

function whenReady(managed) {
  return new Promise((resolve) => {
    const look = () => isReady(managed) && resolve(stop());
    const stop = managed.readyStateChanged.add(look);
    look();
  });
}

// Voxel along an axis that is not x, y or z: the layer's own channel, or the time that the page shows.
function fixedVoxel(viewer, managed, name, channel) {
  const { localCoordinateSpace, localPosition } = managed;
  const local = localCoordinateSpace.value.names.indexOf(name);
  if (local !== -1) return Math.floor(localPosition.value[local] ?? 0);
  const global = viewer.coordinateSpace.value.names.indexOf(name);
  if (global !== -1) return Math.floor(viewer.position.value[global] ?? 0);
  return channel;
}

// Chunks around the middles of the thirds of an axis, or all of a short axis.
function spread(first, end) {
  const count = end - first;
  return count <= 3 ? Array.from({ length: count }, (_, i) => first + i) : [1, 3, 5].map((sixth) => first + Math.floor((sixth * count) / 6));
}

const product = (lists) => lists.reduce((found, list) => found.flatMap((one) => list.map((value) => [...one, value])), [[]]);

function sampleChunk(chunk, within) {
  const size = chunk.chunkDataSize;
  const voxels = within.reduce((number, at, d) => number * (at === undefined ? size[d] : 1), 1);
  const step = Math.max(1, Math.floor(Math.cbrt(voxels / SAMPLES_PER_CHUNK)));
  const axes = within.map((at, d) => (at === undefined ? Array.from({ length: Math.ceil(size[d] / step) }, (_, i) => i * step) : [at]));
  const values = [];
  const position = new Uint32Array(axes.length);
  const walk = (d) => {
    if (d === axes.length) return values.push(Number(chunk.getValueAt(position)));
    for (position[d] of axes[d]) walk(d + 1);
  };
  walk(0);
  return values;
}

// Grey values of one channel at the coarsest level, where a chunk covers the most.
async function sampleVoxels(viewer, managed, channel) {
  const { multiscaleSource: source } = managed.layer.renderLayers.find((one) => one.multiscaleSource);
  const { rank } = source;
  const [levels] = source.getSources({
    discreteValues: false,
    displayRank: rank,
    modelChannelDimensionIndices: [],
    multiscaleToViewTransform: matrix.createIdentity(Float32Array, rank),
  });
  const { chunkSource, chunkToMultiscaleTransform } = levels[levels.length - 1];
  const { spec } = chunkSource;
  const { names } = managed.layer.dataSources[0].loadState.transform.value.outputSpace;
  const nameOf = (d) => names.find((_, model) => chunkToMultiscaleTransform[d * (rank + 1) + model] !== 0);
  const dimensions = Array.from({ length: rank }, (_, d) => {
    const name = nameOf(d);
    if (SPATIAL.includes(name)) return { chunks: spread(spec.lowerChunkBound[d], spec.upperChunkBound[d]) };
    const voxel = fixedVoxel(viewer, managed, name, channel);
    return { chunks: [Math.floor(voxel / spec.chunkDataSize[d])], within: voxel % spec.chunkDataSize[d] };
  });
  const within = dimensions.map((dimension) => dimension.within);
  const fetched = product(dimensions.map((dimension) => dimension.chunks)).map((at) =>
    // A chunk that is missing or damaged does not count.
    chunkSource.fetchChunk(Float32Array.from(at), (chunk) => sampleChunk(chunk, within)).catch(() => []),
  );
  return (await Promise.all(fetched)).flat();
}

// Zeros, which is what lies outside of stitched or aligned images, do not count.
function limits(values) {
  const filled = Float64Array.from(values.filter((value) => Number.isFinite(value) && value !== 0)).sort();
  if (filled.length === 0) return undefined;
  const whole = filled.every(Number.isInteger);
  const at = (percent) => filled[Math.round((percent / 100) * (filled.length - 1))];
  const [low, high] = PERCENTILES.map(at);
  const range = whole ? [Math.floor(low), Math.max(Math.ceil(high), Math.floor(low) + 1)] : [low, high > low ? high : low + 1];
  return { range, window: [Math.min(filled[0], range[0]), Math.max(filled[filled.length - 1], range[1])] };
}

async function setFromData(viewer, managed, channel) {
  await whenReady(managed);
  const found = limits(await sampleVoxels(viewer, managed, channel));
  const trackable = managed.layer?.shaderControlState?.value.get(CONTROL)?.trackable;
  if (found === undefined || trackable === undefined) return;
  const convert = typeof trackable.value.range[0] === "bigint" ? BigInt : Number;
  trackable.value = { ...trackable.value, range: found.range.map(convert), window: found.window.map(convert) };
}

// Sets the contrast of the image layers of a state that was just restored, where the state does not say it.
export function contrastFromData(viewer, state) {
  for (const layer of state.layers ?? []) {
    if (layer.type !== "image" || hasRange(layer) || !layer.shader?.includes(`invlerp ${CONTROL}`)) continue;
    const managed = viewer.layerManager.getLayerByName(layer.name);
    const channel = layer.shaderControls?.[CONTROL]?.channel?.[0] ?? 0;
    if (managed !== undefined) setFromData(viewer, managed, channel).catch((error) => console.warn(layer.name, error));
  }
}
