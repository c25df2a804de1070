// Zoom so that the whole volume just fits: the page cannot be told a zoom in advance, as it does not know the window.
import { PerspectivePanel } from "neuroglancer/unstable/perspective_view/panel.js";
import { SliceViewPanel } from "neuroglancer/unstable/sliceview/panel.js";
import { mat3 } from "neuroglancer/unstable/util/geom.js";

const SLICE_MARGIN = 1.04; // a thin black rim shows that nothing is cut
const PERSPECTIVE_MARGIN = 1.35; // near corners of the box look larger than far ones

// Size of the volume along the display axes, in canonical voxels; undefined while its bounds are not known yet. A single
// plane may have no bounds along z.
function volumeSize(viewer) {
  const { bounds } = viewer.coordinateSpace.value;
  const info = viewer.navigationState.displayDimensionRenderInfo.value;
  const size = [0, 0, 0];
  for (let i = 0; i < info.displayRank; ++i) {
    const dimension = info.displayDimensionIndices[i];
    size[i] = (bounds.upperBounds[dimension] - bounds.lowerBounds[dimension]) * info.canonicalVoxelFactors[i];
  }
  if (size.filter((length) => length > 0 && length < Infinity).length < 2) return undefined;
  return size.map((length) => (length < Infinity ? length : 0));
}

// Width and height of the volume's box as the panel looks at it.
function projectedSize(panel, size) {
  const rotation = mat3.fromQuat(mat3.create(), panel.navigationState.pose.orientation.orientation);
  const along = (axis) => size.reduce((sum, length, i) => sum + Math.abs(rotation[3 * axis + i]) * length, 0);
  return [along(0), along(1)];
}

function fitPanels(viewer, size) {
  let sliceZoom = 0;
  let perspectiveZoom = 0;
  for (const panel of viewer.display.panels) {
    panel.ensureBoundsUpdated();
    const { logicalWidth, logicalHeight } = panel.renderViewport;
    if (!(logicalWidth > 0 && logicalHeight > 0)) continue;
    if (panel instanceof SliceViewPanel) {
      const [width, height] = projectedSize(panel, size);
      sliceZoom = Math.max(sliceZoom, width / logicalWidth, height / logicalHeight);
    } else if (panel instanceof PerspectivePanel) {
      const [width, height] = projectedSize(panel, size);
      perspectiveZoom = Math.max(perspectiveZoom, height, (width * logicalHeight) / logicalWidth);
    }
  }
  if (sliceZoom > 0) viewer.navigationState.zoomFactor.value = sliceZoom * SLICE_MARGIN;
  if (perspectiveZoom > 0) viewer.perspectiveNavigationState.zoomFactor.value = perspectiveZoom * PERSPECTIVE_MARGIN;
}

// Layers arrive one by one and each may widen the bounds: fit again until all are there or the user has zoomed.
export function fitToWindow(viewer) {
  let fitted;
  const zooms = () => [viewer.navigationState.zoomFactor.value, viewer.perspectiveNavigationState.zoomFactor.value].join();
  const fit = () => {
    if (fitted !== undefined && zooms() !== fitted) return stop();
    const size = volumeSize(viewer);
    if (size === undefined) return;
    fitPanels(viewer, size);
    fitted = zooms();
    if (viewer.layerManager.managedLayers.every((layer) => layer.isReady())) stop();
  };
  const stop = viewer.coordinateSpace.changed.add(fit);
  fit();
}
