// A decoder in plain JavaScript: it walks a list of layers (network.py writes it), one image at a time.
// A value is {shape, data}: data a Float32Array, shape that of one image's tensor, as [features] or [channels, height, width].

/** 16-bit floats, little-endian and in base64, as 32-bit ones; there are no infinities among them. */
function fromHalves(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer);
  return Float32Array.from(halves, (half) => {
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return half & 0x8000 ? -size : size;
  });
}

const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);
const pointwise = (f) => ({ shape, data }) => ({ shape, data: data.map(f) });

/** Each weight joins a pixel (y, x) of the smaller image with (y stride - padding + ky, ...) of the larger one, whichever
 * of the two is the input. weight: [channels of the smaller, channels of the larger, height, width]. */
function convolve({ shape, data }, { weight, bias, weights, stride, padding, output_padding }, isTransposed) {
  const [nSmall, nLarge, ...kernel] = weights.weight;
  const [, ...side] = shape;
  const out = [0, 1].map((i) =>
    isTransposed
      ? (side[i] - 1) * stride[i] - 2 * padding[i] + kernel[i] + output_padding[i]
      : Math.floor((side[i] + 2 * padding[i] - kernel[i]) / stride[i]) + 1);
  const [small, large] = isTransposed ? [side, out] : [out, side];
  const nOut = isTransposed ? nLarge : nSmall, area = out[0] * out[1];
  const result = new Float32Array(nOut * area);
  if (bias) for (let c = 0; c < nOut; c++) result.fill(bias[c], c * area, (c + 1) * area);
  let i = 0; // of the weight
  for (let s = 0; s < nSmall; s++)
    for (let l = 0; l < nLarge; l++)
      for (let ky = 0; ky < kernel[0]; ky++)
        for (let kx = 0; kx < kernel[1]; kx++) {
          const w = weight[i++], shift = kx - padding[1];
          const first = Math.max(0, Math.ceil(-shift / stride[1]));
          const last = Math.min(small[1] - 1, Math.floor((large[1] - 1 - shift) / stride[1]));
          for (let y = 0; y < small[0]; y++) {
            const row = y * stride[0] - padding[0] + ky;
            if (row < 0 || row >= large[0]) continue;
            const atSmall = (s * small[0] + y) * small[1];
            const atLarge = (l * large[0] + row) * large[1] + shift;
            if (isTransposed)
              for (let x = first; x <= last; x++) result[atLarge + x * stride[1]] += w * data[atSmall + x];
            else for (let x = first; x <= last; x++) result[atSmall + x] += w * data[atLarge + x * stride[1]];
          }
        }
  return { shape: [nOut, ...out], data: result };
}

/** One function for each kind of layer: (value, layer) -> value. */
const LAYERS = {
  linear({ shape, data }, { weight, bias, weights: { weight: [n, m] } }) {
    const rows = data.length / m, result = new Float32Array(rows * n);
    for (let row = 0; row < rows; row++)
      for (let i = 0; i < n; i++) {
        let sum = bias ? bias[i] : 0;
        for (let j = 0; j < m; j++) sum += weight[i * m + j] * data[row * m + j];
        result[row * n + i] = sum;
      }
    return { shape: [...shape.slice(0, -1), n], data: result };
  },
  layer_norm({ shape, data }, { weight, bias, size, eps }) {
    const result = new Float32Array(data.length);
    for (let at = 0; at < data.length; at += size) {
      const row = data.subarray(at, at + size);
      const mean = row.reduce((a, b) => a + b, 0) / size;
      const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / size;
      const rstd = 1 / Math.sqrt(variance + eps);
      row.forEach((v, i) => (result[at + i] = (v - mean) * rstd * (weight ? weight[i] : 1) + (bias ? bias[i] : 0)));
    }
    return { shape, data: result };
  },
  affine({ shape, data }, { scale, shift }) {
    const area = data.length / scale.length;
    return { shape, data: data.map((v, i) => v * scale[Math.floor(i / area)] + shift[Math.floor(i / area)]) };
  },
  flatten: ({ data }) => ({ shape: [data.length], data }),
  unflatten({ shape: [first, ...others], data }, { sizes }) { // of the sizes one may be -1: what is left
    return { shape: [...sizes.map((size) => (size < 0 ? first / -sizeOf(sizes) : size)), ...others], data };
  },
  conv: (value, layer) => convolve(value, layer, false),
  conv_transpose: (value, layer) => convolve(value, layer, true),
  leaky_relu: (value, { slope }) => pointwise((v) => (v > 0 ? v : slope * v))(value),
  relu: pointwise((v) => Math.max(v, 0)),
  silu: pointwise((v) => v / (1 + Math.exp(-v))),
  tanh: pointwise(Math.tanh),
  sigmoid: pointwise((v) => 1 / (1 + Math.exp(-v))),
  clamp: pointwise((v) => Math.min(Math.max(v, 0), 1)),
};

/** The function z [nz] -> image, a Float32Array [nx], of a network as network.py describes it. */
function decoderOf({ layers, weights }) {
  const all = fromHalves(weights);
  let at = 0;
  const parts = layers.map((layer) => {
    const own = Object.entries(layer.weights).map(([name, shape]) => [name, all.subarray(at, (at += sizeOf(shape)))]);
    return { ...layer, ...Object.fromEntries(own) };
  });
  return (z) =>
    parts.reduce((value, layer) => LAYERS[layer.kind](value, layer), { shape: [z.length], data: Float32Array.from(z) })
      .data;
}
