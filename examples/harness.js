// A LoKO filter in JavaScript with a harness for loko-ref/protocol/1, in one file, node alone.
//
//     loko-ref verify --cmd 'node examples/harness.js'
//
// Written from the texts of 'loko-ref protocol' and 'loko-ref operations' alone. Computes in
// float64; a float32 case is rounded once, at the end.
'use strict'

// Tensors on the wire: {dtype, shape, data: base64 of little-endian rows}.

const SIZE = { float64: 8, float32: 4 }

function decode(tensor) {
  const bytes = Buffer.from(tensor.data, 'base64')
  const size = SIZE[tensor.dtype]
  const data = new Float64Array(bytes.length / size)
  for (let k = 0; k < data.length; k++) {
    data[k] = size === 8 ? bytes.readDoubleLE(k * 8) : bytes.readFloatLE(k * 4)
  }
  return { shape: tensor.shape, data }
}

function encode({ shape, data }, dtype) {
  const size = SIZE[dtype]
  const bytes = Buffer.alloc(data.length * size)
  for (let k = 0; k < data.length; k++) {
    if (size === 8) bytes.writeDoubleLE(data[k], k * 8)
    else bytes.writeFloatLE(data[k], k * 4)
  }
  return { dtype, shape, data: bytes.toString('base64') }
}

// Arrays: {shape, data}, row-major.

const zeros = (...shape) => ({ shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) })
const vector = (values) => ({ shape: [values.length], data: Float64Array.from(values) })
const map = (f, ...arrays) => ({
  shape: arrays[0].shape,
  data: arrays[0].data.map((_, k) => f(...arrays.map((a) => a.data[k]))),
})
const add = (a, b) => map((x, y) => x + y, a, b)
const scaled = (s, a) => map((x) => s * x, a)

function transpose(a) {
  const [rows, columns] = a.shape
  const out = zeros(columns, rows)
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) out.data[j * rows + i] = a.data[i * columns + j]
  }
  return out
}

function product(a, b) {
  const [rows, inner] = a.shape
  const columns = b.shape.length === 1 ? 1 : b.shape[1]
  const out = b.shape.length === 1 ? zeros(rows) : zeros(rows, columns)
  for (let i = 0; i < rows; i++) {
    for (let k = 0; k < inner; k++) {
      const x = a.data[i * inner + k]
      for (let j = 0; j < columns; j++) out.data[i * columns + j] += x * b.data[k * columns + j]
    }
  }
  return out
}

const outer = (e) => product({ shape: [e.data.length, 1], data: e.data },
  { shape: [1, e.data.length], data: e.data })

function eye(n, value = 1) {
  const out = zeros(n, n)
  for (let k = 0; k < n; k++) out.data[k * n + k] = value
  return out
}

// X with A X = B, by elimination with row exchanges.
function solve(A, B) {
  const n = A.shape[0]
  const columns = B.shape[1]
  const a = A.data.slice()
  const x = B.data.slice()
  for (let k = 0; k < n; k++) {
    let pivot = k
    for (let i = k + 1; i < n; i++) {
      if (Math.abs(a[i * n + k]) > Math.abs(a[pivot * n + k])) pivot = i
    }
    const swap = (m, width) => {
      for (let j = 0; j < width; j++) {
        [m[k * width + j], m[pivot * width + j]] = [m[pivot * width + j], m[k * width + j]]
      }
    }
    swap(a, n)
    swap(x, columns)
    for (let i = k + 1; i < n; i++) {
      const f = a[i * n + k] / a[k * n + k]
      for (let j = k; j < n; j++) a[i * n + j] -= f * a[k * n + j]
      for (let j = 0; j < columns; j++) x[i * columns + j] -= f * x[k * columns + j]
    }
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let j = 0; j < columns; j++) {
      for (let k = i + 1; k < n; k++) x[i * columns + j] -= a[i * n + k] * x[k * columns + j]
      x[i * columns + j] /= a[i * n + i]
    }
  }
  return { shape: [n, columns], data: x }
}

// A covariance is p (n,) or P (n, n): P X, for X (n, m).
function covarianceTimes(P, X) {
  if (P.shape.length === 2) return product(P, X)
  const columns = X.shape[1]
  return { shape: X.shape, data: X.data.map((x, k) => P.data[Math.floor(k / columns)] * x) }
}

// diag(A B), for A (n, m) and B (m, n).
function diagonalOfProduct(A, B) {
  const [n, m] = A.shape
  const out = zeros(n)
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < m; k++) out.data[i] += A.data[i * m + k] * B.data[k * n + i]
  }
  return out
}

class Unsupported extends Error {}

// ----------------------------------------------------------------------------------- filter

// Observations.

function softmax(values) {
  const top = Math.max(...values)
  const powers = Array.from(values, (v) => Math.exp(v - top))
  const sum = powers.reduce((a, b) => a + b, 0)
  return powers.map((v) => v / sum)
}

// An (m, m) matrix with one (C, C) block per sample.
function blocks(batch, C, entry) {
  const m = batch * C
  const out = zeros(m, m)
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < C; i++) {
      const row = b * C + i
      for (let j = b * C; j < (b + 1) * C; j++) out.data[row * m + j] = entry(row, j)
    }
  }
  return out
}

const centring = (batch, C) => blocks(batch, C, (i, j) => (i === j ? 1 : 0) - 1 / C)

function predict(observation, z) {
  const [batch, C] = z.shape
  if (observation === 'gaussian') return vector(z.data)
  const rows = []
  for (let b = 0; b < batch; b++) rows.push(...softmax(z.data.subarray(b * C, (b + 1) * C)))
  return vector(rows)
}

function observe(observation, { z, Z, y }, center) {
  const [batch, C] = z.shape
  const yhat = predict(observation, z)
  const e = map((a, b) => a - b, { shape: yhat.shape, data: y.data }, yhat)
  const p = yhat.data
  const J = blocks(batch, C, (i, j) => (i === j ? p[i] : 0) - p[i] * p[j])
  let H = Z
  if (observation === 'softmax' || observation === 'glm') H = product(J, Z)
  if (observation === 'logits' && center) H = product(centring(batch, C), Z)
  return { yhat, e, H, J }
}

// The filter.

function variationalPosterior(p, H, R) {
  const information = diagonalOfProduct(transpose(H), solve(R, H))
  return map((v, i) => 1 / (1 / v + i), p, information)
}

function decoupledPosterior(p, K, H) {
  return map((v, kh) => v * (1 - kh), p, diagonalOfProduct(K, H))
}

function refresh(noise, beta, R, e, HpH) {
  if (noise === 'fixed') return R
  const s = noise === 'ema_innovation' ? outer(e) : add(outer(e), HpH)
  return map((old, now) => beta * old + (1 - beta) * now, R, s)
}

// The network: outputs and their Jacobian, carried forward layer by layer.

function erfc(x) { // of x >= 0
  if (x < 2.5) {
    let term = x
    let sum = x
    for (let k = 1; Math.abs(term) > 1e-18 * Math.abs(sum); k++) {
      term *= (2 * x * x) / (2 * k + 1)
      sum += term
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum
  }
  let fraction = x
  for (let k = 80; k >= 1; k--) fraction = x + k / 2 / fraction
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction
}

function normal(x) { // the normal distribution's function
  const tail = 0.5 * erfc(Math.abs(x) / Math.SQRT2)
  return x < 0 ? tail : 1 - tail
}

const density = (x) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI)

const ELEMENTWISE = { // value and derivative
  relu: (x) => [x > 0 ? x : 0, x > 0 ? 1 : 0],
  tanh: (x) => [Math.tanh(x), 1 - Math.tanh(x) ** 2],
  gelu: (x) => [x * normal(x), normal(x) + x * density(x)],
}

// theta's pieces: linear by linear, A, B, and with a LoRA bias bA, bB.
function unpack(spec, theta) {
  const pieces = {}
  let at = 0
  const take = (name, ...shape) => {
    const size = shape.reduce((a, b) => a * b, 1)
    pieces[name] = { at, shape, data: theta.data.subarray(at, at + size) }
    at += size
  }
  for (const layer of spec) {
    if (layer.kind !== 'linear' || !layer.lora) continue
    take(`${layer.name}.A`, layer.lora.r, layer.in)
    take(`${layer.name}.B`, layer.out, layer.lora.r)
    if (layer.lora.bias) {
      take(`${layer.name}.bA`, layer.lora.r)
      take(`${layer.name}.bB`, layer.out)
    }
  }
  return pieces
}

function linear(layer, weights, pieces, value, slope, n) {
  const W = weights[`${layer.name}.W`]
  let weight = W
  let out = product(W, value)
  if (layer.bias) out = add(out, weights[`${layer.name}.b`])
  if (!layer.lora) return [out, product(weight, slope)]
  const [A, B, bA, bB] = ['A', 'B', 'bA', 'bB'].map((k) => pieces[`${layer.name}.${k}`])
  const r = layer.lora.r
  const scale = layer.lora.alpha / r
  let down = product(A, value)
  if (bA) down = add(down, bA)
  let up = product(B, down)
  if (bB) up = add(up, bB)
  out = add(out, scaled(scale, up))
  weight = add(W, scaled(scale, product(B, A)))
  const dout = product(weight, slope)
  for (let o = 0; o < layer.out; o++) {
    for (let k = 0; k < r; k++) {
      const b = scale * B.data[o * r + k]
      const row = o * n + A.at + k * layer.in
      for (let i = 0; i < layer.in; i++) dout.data[row + i] += b * value.data[i]
      dout.data[o * n + B.at + o * r + k] += scale * down.data[k]
      if (bA) dout.data[o * n + bA.at + k] += b
    }
    if (bB) dout.data[o * n + bB.at + o] += scale
  }
  return [out, dout]
}

function activation(kind, value, slope) {
  const size = value.data.length
  const D = zeros(size, size)
  if (kind in ELEMENTWISE) {
    const pairs = Array.from(value.data, ELEMENTWISE[kind])
    pairs.forEach(([, d], k) => { D.data[k * size + k] = d })
    return [vector(pairs.map(([v]) => v)), product(D, slope)]
  }
  const p = softmax(value.data)
  const top = Math.max(...value.data)
  const log = top + Math.log(value.data.reduce((a, v) => a + Math.exp(v - top), 0))
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      const same = i === j ? 1 : 0
      D.data[i * size + j] = kind === 'softmax' ? p[i] * (same - p[j]) : same - p[j]
    }
  }
  const out = kind === 'softmax' ? p : value.data.map((v) => v - log)
  return [vector(out), product(D, slope)]
}

const KINDS = ['linear', 'softmax', 'log_softmax', ...Object.keys(ELEMENTWISE)]

function network(spec, weights, theta, x) {
  const foreign = spec.find((layer) => !KINDS.includes(layer.kind))
  if (foreign) throw new Unsupported(`no layer of kind ${foreign.kind}`)
  const n = theta.data.length
  const pieces = unpack(spec, theta)
  const [batch, width] = x.shape
  const z = []
  const Z = []
  let C = width
  for (let b = 0; b < batch; b++) {
    let value = vector(x.data.subarray(b * width, (b + 1) * width))
    let slope = zeros(width, n)
    for (const layer of spec) {
      [value, slope] = layer.kind === 'linear'
        ? linear(layer, weights, pieces, value, slope, n)
        : activation(layer.kind, value, slope)
    }
    C = value.data.length
    z.push(...value.data)
    Z.push(...slope.data)
  }
  return {
    z: { shape: [batch, C], data: Float64Array.from(z) },
    Z: { shape: [batch * C, n], data: Float64Array.from(Z) },
  }
}

function step(inputs, o) {
  const { x, y, theta, R, weights } = inputs
  const dense = o.covariance === 'dense'
  const predicted = dense
    ? add(scaled(1 / o.lam, inputs.P), eye(theta.data.length, o.q))
    : map((v) => v / o.lam + o.q, inputs.p)
  const { z, Z } = network(o.spec, weights, theta, x)
  const { yhat, e, H, J } = observe(o.observation, { z, Z, y }, o.center)
  const [batch, C] = z.shape
  const spread = (P) => product(H, covarianceTimes(P, transpose(H)))
  const HpH = spread(predicted)
  const residual = o.noise === 'ema_residual_hph'
  const out = { z, Z, yhat, e, H, [dense ? 'P_pred' : 'p_pred']: predicted }

  let used = R
  if (o.noise === 'glm') used = J
  else if (o.timing === 'before') used = refresh(o.noise, o.beta, R, e, HpH)
  const S = add(HpH, used)
  let K
  if (o.noise === 'glm') {
    // P Z' J S^+ = P Z' (I + J Z P Z')^-1, centred: no pseudo-inverse is needed.
    const PZ = covarianceTimes(predicted, transpose(Z))
    const M = add(eye(batch * C), product(J, product(Z, PZ)))
    K = product(transpose(solve(transpose(M), transpose(PZ))), centring(batch, C))
  } else {
    K = transpose(solve(S, transpose(covarianceTimes(predicted, transpose(H)))))
    if (o.observation === 'softmax' || o.observation === 'glm') K = product(K, centring(batch, C))
  }
  const mean = add(theta, product(K, e))
  Object.assign(out, { R_used: used, S, K, theta: mean })

  let posterior
  if (dense) {
    posterior = add(predicted, scaled(-1, product(K, product(H, predicted))))
    out.P = posterior
  } else {
    if (o.diagonal === 'decoupled') posterior = decoupledPosterior(predicted, K, H)
    else if (o.noise === 'glm') {
      const information = diagonalOfProduct(transpose(Z), product(J, Z))
      posterior = map((v, i) => 1 / (1 / v + i), predicted, information)
    } else posterior = variationalPosterior(predicted, H, used)
    out.p = posterior
  }

  if (residual) {
    const now = predict(o.observation, network(o.spec, weights, mean, x).z)
    const left = map((a, b) => a - b, { shape: now.shape, data: y.data }, now)
    out.R = refresh(o.noise, o.beta, R, left, spread(posterior))
  } else if (o.noise !== 'glm') {
    out.R = o.timing === 'before' ? used : refresh(o.noise, o.beta, R, e, HpH)
  }
  return out
}

const OPTIONS = {} // what this filter has one value of: nothing

const OPERATIONS = {
  'kalman.time_update': ({ p }, { lam, q }) => ({ p_pred: map((v) => v / lam + q, p) }),

  'kalman.diagonal_update': ({ theta, p, H, e, R }, { diagonal }) => {
    const PH = covarianceTimes(p, transpose(H))
    const S = add(product(H, PH), R)
    const K = transpose(solve(S, transpose(PH))) // S is symmetric
    return {
      S,
      K,
      theta: add(theta, product(K, e)),
      p: diagonal === 'variational' ? variationalPosterior(p, H, R) : decoupledPosterior(p, K, H),
    }
  },

  'observation.softmax': (inputs) => {
    const { yhat, e, H } = observe('softmax', inputs)
    return { yhat, e, H }
  },

  'observation.logits': (inputs, { center }) => {
    const { yhat, e, H } = observe('logits', inputs, center)
    return { yhat, e, H }
  },

  'noise.update': ({ R, e, HpH }, { noise, beta }) => ({ R: refresh(noise, beta, R, e, HpH) }),

  'lora.delta': ({ A, B }, { alpha }) => ({ delta: scaled(alpha / A.shape[0], product(B, A)) }),

  'lora.merge': ({ W, A, B }, { alpha }) => ({
    W: add(W, scaled(alpha / A.shape[0], product(B, A))),
  }),

  'optimizer.adamw': ({ theta, gradient }, { lr, beta1, beta2, eps, weight_decay: decay }) => {
    const [steps, n] = gradient.shape
    const out = { exp_avg: zeros(steps, n), exp_avg_sq: zeros(steps, n), theta: zeros(steps, n) }
    for (let i = 0; i < n; i++) {
      let [t, m, v] = [theta.data[i], 0, 0]
      for (let k = 0; k < steps; k++) {
        const g = gradient.data[k * n + i]
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        const corrected = m / (1 - beta1 ** (k + 1))
        const root = Math.sqrt(v / (1 - beta2 ** (k + 1)))
        t = t * (1 - lr * decay) - (lr * corrected) / (root + eps)
        out.exp_avg.data[k * n + i] = m
        out.exp_avg_sq.data[k * n + i] = v
        out.theta.data[k * n + i] = t
      }
    }
    return out
  },

  'loko.step': step,
}

// ----------------------------------------------------------------------------- conversation

const each = (f, object) => Object.fromEntries(Object.entries(object).map(([k, v]) => [k, f(v)]))

const isTensor = (v) => typeof v.dtype === 'string' && Array.isArray(v.shape)

// A tensor, or a mapping of tensors.
const read = (value) => (isTensor(value) ? decode(value) : each(decode, value))

function dtypeOf(inputs) {
  const first = Object.values(inputs)[0]
  return isTensor(first) ? first.dtype : dtypeOf(first)
}

function run({ id, operation, inputs, options }) {
  try {
    if (!(operation in OPERATIONS)) throw new Unsupported(`no ${operation}`)
    const outputs = OPERATIONS[operation](each(read, inputs), options)
    return { type: 'result', id, outputs: each((v) => encode(v, dtypeOf(inputs)), outputs) }
  } catch (error) {
    if (error instanceof Unsupported) return { type: 'unsupported', id, reason: error.message }
    return { type: 'error', id, message: error.stack }
  }
}

function hello({ protocol, canary }) {
  return {
    type: 'hello',
    protocol,
    operations: Object.keys(OPERATIONS),
    dtypes: Object.keys(SIZE),
    canary: each((v) => encode(decode(v), v.dtype), canary),
    files: false,
    options: OPTIONS,
  }
}

function answer(line) {
  let message
  try {
    message = JSON.parse(line)
  } catch (error) {
    return { type: 'error', id: null, message: error.message }
  }
  if (message?.type === 'hello') return hello(message)
  if (message?.type === 'run') return run(message)
  if (message?.type === 'stop') process.exit(0)
  return { type: 'error', id: null, message: `unknown type ${message?.type}` }
}

require('node:readline')
  .createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on('line', (line) => process.stdout.write(`${JSON.stringify(answer(line))}\n`))
