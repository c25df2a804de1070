import { defineConfig } from "vite";

// Vite looks for `new Worker(new URL(` in the raw text; Neuroglancer has a webpack comment in between, and then the
// workers are copied unbundled without a word: no chunk is ever decoded. Drop the comment. (build.py checks the size.)
const bareWorkers = {
  name: "bare-workers",
  enforce: "pre",
  transform(code, id) {
    if (id.includes("/neuroglancer/lib/") && code.includes("webpackChunkName")) {
      return { code: code.replace(/\/\*\s*webpackChunkName[^*]*\*\//g, ""), map: null };
    }
  },
};

// Only what KNeuroViz shows; names as in "imports" of neuroglancer's package.json.
const enabled = {
  datasource: ["precomputed", "zarr", "n5", "obj", "vtk", "nifti"],
  kvstore: ["http", "zip", "gzip", "byte_range", "s3", "gcs"],
};
const conditions = Object.entries(enabled).flatMap(([kind, names]) => [
  `neuroglancer/${kind}:none_by_default`,
  ...names.map((name) => `neuroglancer/${kind}/${name}:enabled`),
]);

export default defineConfig({
  base: "./", // any folder of any server
  plugins: [bareWorkers],
  resolve: { conditions: ["module", "browser", "production", ...conditions] },
  worker: { format: "es", plugins: () => [bareWorkers] },
  build: {
    outDir: "dist",
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
    chunkSizeWarningLimit: 4096,
  },
});
