//! The block and its gradients in f64, one equation after the other, with no thought for speed.

use std::collections::HashMap;

use deltaconv_kernels::{BlockShape, Gate, Parameters};

/// What a pass over a batch gives; gradients by tensor name.
pub(crate) struct Reference {
    pub(crate) y: Vec<f64>,
    pub(crate) loss: f64,
    pub(crate) gradients: HashMap<String, Vec<f64>>,
    pub(crate) x_gradient: Vec<f64>,
}

/// A number in [−1, 1) that depends on its place only (the finaliser of SplitMix64).
pub(crate) fn noise(seed: u64, stream: u64, index: u64) -> f64 {
    let mut bits = seed ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03);
    bits = bits.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// A linear map from one map to another, position by position: (from, to, weight).
type Links = Vec<(usize, usize, f64)>;

/// A convolution's links: (input position, tap, output position).
fn taps(height: usize, width: usize, kernel_size: usize) -> Vec<(usize, usize, usize)> {
    let margin = kernel_size / 2;
    let mut links = Vec::new();
    for (y, x) in positions(height, width) {
        for (ky, kx) in positions(kernel_size, kernel_size) {
            let (row, column) = (y + ky, x + kx);
            let rows = margin..height + margin;
            if rows.contains(&row) && (margin..width + margin).contains(&column) {
                let input = (row - margin) * width + column - margin;
                links.push((input, ky * kernel_size + kx, y * width + x));
            }
        }
    }
    links
}

fn positions(height: usize, width: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..height).flat_map(move |y| (0..width).map(move |x| (y, x)))
}

fn pooling(full: (usize, usize), small: (usize, usize)) -> Links {
    let bin = |index: usize, inputs: usize, outputs: usize| {
        let (n, m) = (inputs as f64, outputs as f64);
        let start = (index as f64 * n / m).floor() as usize;
        start..((index as f64 + 1.0) * n / m).ceil() as usize
    };
    let mut links = Vec::new();
    for (y, x) in positions(small.0, small.1) {
        let (rows, columns) = (bin(y, full.0, small.0), bin(x, full.1, small.1));
        let share = 1.0 / (rows.len() * columns.len()) as f64;
        for row in rows {
            for column in columns.clone() {
                links.push((row * full.1 + column, y * small.1 + x, share));
            }
        }
    }
    links
}

fn enlarging(small: (usize, usize), full: (usize, usize)) -> Links {
    let sample = |index: usize, inputs: usize, outputs: usize| {
        let position = ((index as f64 + 0.5) * inputs as f64 / outputs as f64 - 0.5).max(0.0);
        let low = position.floor() as usize;
        let weight = position - low as f64;
        [(low, 1.0 - weight), ((low + 1).min(inputs - 1), weight)]
    };
    let mut links = Vec::new();
    for (y, x) in positions(full.0, full.1) {
        for (row, vertical) in sample(y, small.0, full.0) {
            for (column, horizontal) in sample(x, small.1, full.1) {
                links.push((row * small.1 + column, y * full.1 + x, vertical * horizontal));
            }
        }
    }
    links
}

/// `[from, channels]` → `[to, channels]` along the links, or back along them.
fn follow(links: &Links, values: &[f64], channels: usize, outputs: usize, back: bool) -> Vec<f64> {
    let mut sums = vec![0.0; outputs * channels];
    for &(from, to, weight) in links {
        let (source, sink) = if back { (to, from) } else { (from, to) };
        for channel in 0..channels {
            sums[sink * channels + channel] += weight * values[source * channels + channel];
        }
    }
    sums
}

/// `[rows, inputs]` · weightᵀ + bias.
fn linear(input: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let inputs = weight.len() / bias.len();
    let rows = input.chunks(inputs);
    rows.flat_map(|row| {
        weight
            .chunks(inputs)
            .zip(bias)
            .map(|(weight, bias)| bias + row.iter().zip(weight).map(|(a, b)| a * b).sum::<f64>())
    })
    .collect()
}

/// Adds a linear's gradients to `sums` under its name and returns that of its input.
fn linear_back(
    name: &str,
    input: &[f64],
    weight: &[f64],
    gradient: &[f64],
    sums: &mut HashMap<String, Vec<f64>>,
) -> Vec<f64> {
    let outputs = sums[&format!("{name}.bias")].len();
    let inputs = weight.len() / outputs;
    let mut back = vec![0.0; input.len()];
    let rows = input.chunks(inputs).zip(back.chunks_mut(inputs)).zip(gradient.chunks(outputs));
    for ((input, back), gradient) in rows {
        for (output, gradient) in gradient.iter().enumerate() {
            sums.get_mut(&format!("{name}.bias")).unwrap()[output] += gradient;
            let weights = sums.get_mut(&format!("{name}.weight")).unwrap();
            for channel in 0..inputs {
                let place = output * inputs + channel;
                weights[place] += gradient * input[channel];
                back[channel] += gradient * weight[place];
            }
        }
    }
    back
}

/// The pass over a batch, sample by sample.
pub(crate) fn run(
    shape: &BlockShape,
    parameters: &Parameters,
    x: &[f32],
    (target, gates): (&[f32], Option<&[f32]>),
    [_, height, width]: [usize; 3],
    scale: f64,
) -> Reference {
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let weights: HashMap<String, Vec<f64>> =
        parameters.iter().map(|(tensor, values)| (tensor.name.clone(), wide(values))).collect();
    let mut reference = Reference {
        y: Vec::new(),
        loss: 0.0,
        gradients: weights.iter().map(|(n, v)| (n.clone(), vec![0.0; v.len()])).collect(),
        x_gradient: Vec::new(),
    };
    let (c, total) = (shape.channels(), x.len() as f64);
    for (index, (x, target)) in x.chunks(height * width * c).zip(target.chunks(height * width * c)).enumerate() {
        let gates = gates.map_or(vec![1.0; c], |gates| wide(&gates[index * c..][..c]));
        let aim = (&wide(target)[..], &gates[..]);
        sample(shape, &weights, [height, width], &wide(x), aim, scale / total, &mut reference);
    }
    reference.loss /= total;
    reference
}

fn sample(
    shape: &BlockShape,
    weights: &HashMap<String, Vec<f64>>,
    [height, width]: [usize; 2],
    x: &[f64],
    (target, gates): (&[f64], &[f64]),
    factor: f64,
    reference: &mut Reference,
) {
    let (c, d, k) = (shape.channels(), shape.inner(), shape.kernel_size());
    let (half, columns, count) = (shape.half(), shape.features(), height * width);
    let root = (half as f64).sqrt();
    let sigmoid = |b: f64| 1.0 / (1.0 + (-b).exp());

    let h = linear(x, &weights["conv_up.weight"], &weights["conv_up.bias"]);
    let mut features = vec![0.0; count * columns];
    let mut kept = Vec::new();
    for (index, &scale) in shape.scales().iter().enumerate() {
        let small = shape.scaled_map(height, width, scale).unwrap();
        let (pool, enlarge) = (pooling((height, width), small), enlarging(small, (height, width)));
        let h_s = follow(&pool, &h, d, small.0 * small.1, false);
        let kernel = &weights[&format!("gates.{index}.conv_spatial.weight")];
        let mut g = vec![0.0; h_s.len()];
        for (input, tap, output) in taps(small.0, small.1, k) {
            for channel in 0..d {
                g[output * d + channel] += h_s[input * d + channel] * kernel[tap * d + channel];
            }
        }
        let gated: Vec<f64> = (0..small.0 * small.1 * half)
            .map(|place| {
                let row = place / half * d + place % half;
                match shape.gate() {
                    Gate::Scaled => g[row] * g[row + half] * root,
                    Gate::Sigmoid => g[row] * sigmoid(g[row + half]),
                }
            })
            .collect();
        let p = follow(&enlarge, &gated, half, count, false);
        for (position, row) in p.chunks(half).enumerate() {
            features[position * columns + index * half..][..half].copy_from_slice(row);
        }
        kept.push((small, pool, enlarge, h_s, g));
    }
    let mut mean = vec![0.0; c];
    for row in x.chunks(c) {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value / count as f64);
    }
    let pooled = linear(&mean, &weights["conv_pool.weight"], &weights["conv_pool.bias"]);
    let mut y = linear(&features, &weights["conv_out.weight"], &weights["conv_out.bias"]);
    y.chunks_mut(c).for_each(|row| row.iter_mut().zip(&pooled).for_each(|(a, b)| *a += b));

    let residual: Vec<f64> = y.iter().zip(target).map(|(y, target)| y - target).collect();
    let gated: Vec<f64> = residual.iter().enumerate().map(|(at, r)| gates[at % c] * r).collect();
    reference.loss += gated.iter().map(|r| r * r).sum::<f64>();
    reference.y.extend(y);
    let dy: Vec<f64> = gated.iter().enumerate().map(|(at, r)| 2.0 * factor * gates[at % c] * r).collect();

    let sums = &mut reference.gradients;
    let df = linear_back("conv_out", &features, &weights["conv_out.weight"], &dy, sums);
    let mut dy_sum = vec![0.0; c];
    dy.chunks(c).for_each(|row| dy_sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v));
    let d_mean = linear_back("conv_pool", &mean, &weights["conv_pool.weight"], &dy_sum, sums);
    let mut dh = vec![0.0; h.len()];
    for (index, (small, pool, enlarge, h_s, g)) in kept.iter().enumerate() {
        let dp: Vec<f64> = df.chunks(columns).flat_map(|row| row[index * half..][..half].to_vec()).collect();
        let d_gated = follow(enlarge, &dp, half, small.0 * small.1, true);
        let mut dg = vec![0.0; g.len()];
        for (place, gradient) in d_gated.iter().enumerate() {
            let row = place / half * d + place % half;
            let (a, b) = (g[row], g[row + half]);
            let s = sigmoid(b);
            (dg[row], dg[row + half]) = match shape.gate() {
                Gate::Scaled => (gradient * b * root, gradient * a * root),
                Gate::Sigmoid => (gradient * s, gradient * a * s * (1.0 - s)),
            };
        }
        let name = format!("gates.{index}.conv_spatial.weight");
        let (kernel, d_kernel) = (&weights[&name], sums.get_mut(&name).unwrap());
        let mut dh_s = vec![0.0; h_s.len()];
        for (input, tap, output) in taps(small.0, small.1, k) {
            for channel in 0..d {
                let gradient = dg[output * d + channel];
                d_kernel[tap * d + channel] += gradient * h_s[input * d + channel];
                dh_s[input * d + channel] += gradient * kernel[tap * d + channel];
            }
        }
        let back = follow(pool, &dh_s, d, count, true);
        dh.iter_mut().zip(back).for_each(|(sum, value)| *sum += value);
    }
    let mut dx = linear_back("conv_up", x, &weights["conv_up.weight"], &dh, sums);
    for row in dx.chunks_mut(c) {
        row.iter_mut().zip(&d_mean).for_each(|(sum, value)| *sum += value / count as f64);
    }
    reference.x_gradient.extend(dx);
}
