// Images: blocks of text in the page become codes when somebody looks at them. The format: recon/viewer/planes.py.

const INVALID = 2 ** IMAGES.bits - 1;
const ABOVE = INVALID - 1;
const planeCache = new Map();
const CACHED = 240;

async function inflate(id) {
  const text = byId(`b${id}`).textContent;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function unpredict(bytes, ny, nx) {
  const n = ny * nx;
  const codes = new Uint16Array(n);
  for (let y = 0, i = 0; y < ny; y++) {
    for (let x = 0; x < nx; x++, i++) {
      const folded = bytes[i] | (bytes[n + i] << 8);
      const residual = folded & 1 ? -((folded + 1) >> 1) : folded >> 1;
      let expected = 0;
      if (y && x) {
        const left = codes[i - 1], up = codes[i - nx], corner = codes[i - nx - 1];
        const low = left < up ? left : up, high = left < up ? up : left;
        const plane = left + up - corner;
        expected = plane < low ? low : plane > high ? high : plane;
      } else if (x) expected = codes[i - 1];
      else if (y) expected = codes[i - nx];
      codes[i] = expected + residual;
    }
  }
  return codes;
}

// The codes of a plane of `file`, Uint16 (y x); null where the page does not hold it.
function planeOf(file, slice, series) {
  const at = file.slices.indexOf(slice);
  const names = file.truth ? ["truth", ...file.methods] : file.methods;
  const id = file.planes[at]?.[names.indexOf(series)];
  if (!id) return Promise.resolve(null);
  const key = `${id} ${file.shape}`;
  const found = planeCache.get(key) ?? inflate(id).then((bytes) => unpredict(bytes, ...file.shape));
  planeCache.delete(key);
  planeCache.set(key, found);
  if (planeCache.size > CACHED) planeCache.delete(planeCache.keys().next().value);
  return found;
}

// What a code of a series means: value = (code - zero) * step. Maps have their own; images share that of the file.
const scaleOf = (file, series) => file.scales[series] ?? { step: file.step, zero: 0 };

// A value in the unit of the images; NaN where there is no number.
function valueOf(file, code, series) {
  const { step, zero } = scaleOf(file, series);
  return code === INVALID ? NaN : (code - zero) * step;
}

function valueText(file, code, series) {
  if (code === INVALID) return "no number";
  return (code === ABOVE ? "≥ " : "") + significant(valueOf(file, code, series));
}
const significant = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(3) : v.toPrecision(4)).replace(/^-/, "−");

async function samplingOf(file) {
  if (!file.sampling) return null;
  const [id, [ny, nx]] = file.sampling;
  const bits = await inflate(id);
  return { ny, nx, at: (i) => (bits[i >> 3] >> (7 - (i & 7))) & 1 };
}
