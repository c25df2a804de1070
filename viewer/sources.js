// Neuroglancer wants absolute addresses; a saved view names its volumes relative to its own page, so that the folder can move.
const SCHEME = /^[a-z][a-z0-9+.-]*:/i;

function absolute(source, base) {
  const [location, ...formats] = source.split("|");
  return SCHEME.test(location) ? source : [new URL(location, base).href, ...formats].join("|");
}

function absoluteSource(source, base) {
  if (typeof source === "string") return absolute(source, base);
  if (Array.isArray(source)) return source.map((one) => absoluteSource(one, base));
  if (typeof source?.url === "string") return { ...source, url: absolute(source.url, base) };
  return source;
}

export function withAbsoluteSources(state, base) {
  const layers = (state.layers ?? []).map((layer) => ({ ...layer, source: absoluteSource(layer.source, base) }));
  return { ...state, layers };
}
