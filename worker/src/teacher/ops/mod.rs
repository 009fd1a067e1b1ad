//! The operations of a teacher's forward pass over maps that are channels last: on the processor in f32 with kernels of
//! our own, on a GPU in f32, bf16 or f16 with those of `deltaconv_kernels::cuda::teacher`. An operation runs where its
//! tensors are.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod difference;
mod place;
#[cfg(test)]
mod tests;
mod tracked;

use std::sync::Arc;

use candle_core::{Tensor, bail};
use deltaconv_proto::teacher::{Activation, TimeEmbedding};

pub(crate) use self::cpu::AttentionMap;
pub(super) use self::cpu::{FeedForwardActivation, Heads, Padding, Projected, attention_maps};
pub(crate) use self::difference::{mean_square, relative_error};
pub use self::place::Place;
pub(crate) use self::tracked::attach;
use super::Error;

/// y = x Wᵀ + b over the last dimension; a 1×1 convolution of maps that are channels last.
#[derive(Debug)]
pub(super) enum Linear {
    Cpu(Arc<cpu::Linear>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Linear>),
}

impl Linear {
    /// From PyTorch's layout: `weight` [output, input], `bias` [output].
    pub(super) fn new(
        place: &Place,
        (input, output): (usize, usize),
        weight: &[f32],
        bias: Option<Vec<f32>>,
    ) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let Some(queue) = place.queue()? {
            let linear = cuda::Linear::new(&queue, place.dtype(), (input, output), weight, bias.as_deref())?;
            return Ok(Self::Cuda(Arc::new(linear)));
        }
        let _ = place;
        Ok(Self::Cpu(Arc::new(cpu::Linear::new(input, output, weight, bias))))
    }

    /// x [.., input] → [.., output].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        if x.track_op() {
            let y = self.forward(&x.detach())?;
            return match self {
                Self::Cpu(linear) => {
                    let linear = linear.clone();
                    Ok(attach(x, y, move |gradient| linear.input_gradient(gradient))?)
                }
                #[cfg(feature = "cuda")]
                Self::Cuda(linear) => {
                    let linear = linear.clone();
                    Ok(attach(x, y, move |gradient| linear.input_gradient(gradient).map_err(wrap))?)
                }
            };
        }
        match self {
            Self::Cpu(linear) => Ok(linear.forward(x)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(linear) => Ok(linear.forward(x)?),
        }
    }

    /// x [.., input] → residual + x Wᵀ + b, both [.., output].
    pub(super) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor, Error> {
        if residual.track_op() || x.track_op() {
            return Ok(residual.add(&self.forward(x)?)?);
        }
        match self {
            Self::Cpu(linear) => Ok(linear.forward_onto(residual, x)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(linear) => Ok(linear.forward_onto(residual, x)?),
        }
    }
}

/// A k×k convolution of maps that are channels last.
#[derive(Debug)]
pub(super) enum Conv {
    Cpu(Arc<cpu::Conv>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Conv>),
}

/// What a convolution adds to its result.
#[derive(Clone, Copy, Default)]
pub(super) struct Added<'a> {
    /// [B, output], to every pixel of a sample.
    pub(super) shift: Option<&'a Tensor>,
    /// [B, H', W', output].
    pub(super) residual: Option<&'a Tensor>,
    /// Divides the sum.
    pub(super) divisor: Option<f32>,
}

impl Conv {
    /// From PyTorch's layout: `weight` [output, input, kernel, kernel], `bias` [output].
    pub(super) fn new(
        place: &Place,
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        padding: Padding,
        weight: &[f32],
        bias: Vec<f32>,
    ) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let Some(queue) = place.queue()? {
            let Padding { before, after } = padding;
            let shape = cuda::ConvShape { input, output, kernel, stride, before, after };
            let conv = cuda::Conv::new(&queue, place.dtype(), shape, weight, &bias)?;
            return Ok(Self::Cuda(Arc::new(conv)));
        }
        let _ = place;
        Ok(Self::Cpu(Arc::new(cpu::Conv::new((input, output), kernel, stride, padding, weight, bias))))
    }

    /// x [B, H, W, input] → [B, H', W', output].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        self.forward_adding(x, Added::default())
    }

    /// As `forward`, with more added to the result.
    pub(super) fn forward_adding(&self, x: &Tensor, added: Added<'_>) -> Result<Tensor, Error> {
        let (_, height, width, _) = x.dims4()?;
        self.apply(x, (height, width), added)
    }

    /// x is first resized to `size` by nearest neighbours, PyTorch's `interpolate(mode="nearest")`.
    pub(super) fn forward_resized(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor, Error> {
        self.apply(x, size, Added::default())
    }

    fn apply(&self, x: &Tensor, size: (usize, usize), added: Added<'_>) -> Result<Tensor, Error> {
        let Added { shift, residual, divisor } = added;
        if x.track_op() || residual.is_some_and(Tensor::track_op) {
            let y = self.apply(&x.detach(), size, Added { shift, ..Added::default() })?;
            let y = match self {
                _ if !x.track_op() => y,
                Self::Cpu(conv) => {
                    let (conv, (_, height, width, _)) = (conv.clone(), x.dims4()?);
                    attach(x, y, move |gradient| conv.input_gradient(gradient, (height, width), size))?
                }
                #[cfg(feature = "cuda")]
                Self::Cuda(conv) => {
                    let (conv, (_, height, width, _)) = (conv.clone(), x.dims4()?);
                    let back = move |gradient: &Tensor| conv.input_gradient(gradient, (height, width), size);
                    attach(x, y, move |gradient| back(gradient).map_err(wrap))?
                }
            };
            let y = residual.map_or(Ok(y.clone()), |residual| y.add(residual))?;
            return Ok(divisor.map_or(Ok(y.clone()), |divisor| y.affine(1.0 / f64::from(divisor), 0.0))?);
        }
        match self {
            Self::Cpu(conv) => Ok(conv.forward(x, size, cpu::Added { shift, residual, divisor })?),
            #[cfg(feature = "cuda")]
            Self::Cuda(conv) => {
                let y = conv.forward(x, size, cuda::Added { shift, residual })?;
                Ok(match divisor {
                    Some(divisor) => y.affine(1.0 / f64::from(divisor), 0.0)?,
                    None => y,
                })
            }
        }
    }
}

/// Group normalisation of maps that are channels last, and the activation after it.
#[derive(Debug)]
pub(super) enum GroupNorm {
    Cpu(Arc<cpu::GroupNorm>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::GroupNorm>),
}

impl GroupNorm {
    /// `weight` and `bias` [C]; `groups` must divide C.
    pub(super) fn new(place: &Place, groups: usize, eps: f64, weight: Vec<f32>, bias: Vec<f32>) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let Some(queue) = place.queue()? {
            let norm = cuda::GroupNorm::new(&queue, groups, eps, &weight, &bias)?;
            return Ok(Self::Cuda(Arc::new(norm)));
        }
        let _ = place;
        Ok(Self::Cpu(Arc::new(cpu::GroupNorm::new(groups, eps, weight, bias))))
    }

    /// x [B, H, W, C] → the same shape.
    pub(super) fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor, Error> {
        if x.track_op() {
            return self.track(x, self.forward(&x.detach(), activation)?, None, activation);
        }
        match self {
            Self::Cpu(norm) => Ok(norm.forward(x, activation)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(norm) => Ok(norm.forward(x, None, cuda::activation(activation))?),
        }
    }

    /// norm(x) · (1 + scale) + shift, then the activation; `scale_shift` [B, 2C] has the scales first.
    pub(super) fn forward_modulated(
        &self,
        x: &Tensor,
        scale_shift: &Tensor,
        activation: Activation,
    ) -> Result<Tensor, Error> {
        if x.track_op() {
            let y = self.forward_modulated(&x.detach(), scale_shift, activation)?;
            return self.track(x, y, Some(scale_shift.clone()), Some(activation));
        }
        match self {
            Self::Cpu(norm) => Ok(norm.forward_modulated(x, scale_shift, activation)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(norm) => Ok(norm.forward(x, Some(scale_shift), cuda::activation(Some(activation)))?),
        }
    }

    fn track(
        &self,
        x: &Tensor,
        y: Tensor,
        scale_shift: Option<Tensor>,
        activation: Option<Activation>,
    ) -> Result<Tensor, Error> {
        match self {
            Self::Cpu(norm) => {
                let (norm, given) = (norm.clone(), x.detach());
                let back =
                    move |gradient: &Tensor| norm.input_gradient(&given, scale_shift.as_ref(), activation, gradient);
                Ok(attach(x, y, back)?)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(norm) => {
                let (norm, given, activation) = (norm.clone(), x.detach(), cuda::activation(activation));
                let back = move |gradient: &Tensor| {
                    norm.input_gradient(&given, scale_shift.as_ref(), activation, gradient).map_err(wrap)
                };
                Ok(attach(x, y, back)?)
            }
        }
    }
}

/// Layer normalisation over the last dimension.
#[derive(Debug)]
pub(super) enum LayerNorm {
    Cpu(Arc<cpu::LayerNorm>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::LayerNorm>),
}

impl LayerNorm {
    /// `weight` and `bias` [C].
    pub(super) fn new(place: &Place, eps: f32, weight: Vec<f32>, bias: Vec<f32>) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let Some(queue) = place.queue()? {
            let norm = cuda::LayerNorm::new(&queue, eps, &weight, &bias)?;
            return Ok(Self::Cuda(Arc::new(norm)));
        }
        let _ = place;
        Ok(Self::Cpu(Arc::new(cpu::LayerNorm::new(eps, weight, bias))))
    }

    /// x [.., C] → the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        if x.track_op() {
            let y = self.forward(&x.detach())?;
            return match self {
                Self::Cpu(norm) => {
                    let (norm, given) = (norm.clone(), x.detach());
                    Ok(attach(x, y, move |gradient| norm.input_gradient(&given, gradient))?)
                }
                #[cfg(feature = "cuda")]
                Self::Cuda(norm) => {
                    let (norm, given) = (norm.clone(), x.detach());
                    Ok(attach(x, y, move |gradient| norm.input_gradient(&given, gradient).map_err(wrap))?)
                }
            };
        }
        match self {
            Self::Cpu(norm) => Ok(norm.forward(x)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(norm) => Ok(norm.forward(x)?),
        }
    }
}

/// The transformer's feed-forward: y = activation(x Wᵢᵀ + bᵢ) Wₒᵀ + bₒ.
#[derive(Debug)]
pub(super) struct FeedForward {
    pub(super) activation: FeedForwardActivation,
    /// C → 4C, or 8C where half of it gates the other: `ff.net.0.proj`.
    pub(super) up: Linear,
    /// 4C → C: `ff.net.2`.
    pub(super) down: Linear,
}

impl FeedForward {
    /// x [.., C] → y [.., C].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        self.apply(x, None)
    }

    /// x [.., C] → residual + y, both [.., C].
    pub(super) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor, Error> {
        self.apply(x, Some(residual))
    }

    fn apply(&self, x: &Tensor, onto: Option<&Tensor>) -> Result<Tensor, Error> {
        if x.track_op() || onto.is_some_and(Tensor::track_op) {
            let y = self.apply(&x.detach(), None)?;
            let y = match (&self.up, &self.down) {
                _ if !x.track_op() => y,
                (Linear::Cpu(up), Linear::Cpu(down)) => {
                    let (activation, up, down, given) = (self.activation, up.clone(), down.clone(), x.detach());
                    let back =
                        move |gradient: &Tensor| cpu::feed_forward_gradient(activation, &up, &down, &given, gradient);
                    attach(x, y, back)?
                }
                #[cfg(feature = "cuda")]
                (Linear::Cuda(up), Linear::Cuda(down)) => {
                    let (activation, up, down, given) = (self.activation, up.clone(), down.clone(), x.detach());
                    let back =
                        move |gradient: &Tensor| cuda::feed_forward_gradient(activation, &up, &down, &given, gradient);
                    attach(x, y, back)?
                }
                #[cfg(feature = "cuda")]
                _ => return Err(elsewhere()),
            };
            return Ok(onto.map_or(Ok(y.clone()), |residual| residual.add(&y))?);
        }
        match (&self.up, &self.down) {
            (Linear::Cpu(up), Linear::Cpu(down)) => Ok(cpu::feed_forward(self.activation, up, down, x, onto)?),
            #[cfg(feature = "cuda")]
            (Linear::Cuda(up), Linear::Cuda(down)) => {
                let hidden = match self.activation {
                    FeedForwardActivation::Geglu => cuda::geglu(&*cuda::queue(x)?, &up.forward(x)?)?,
                    FeedForwardActivation::GeluTanh => up.forward_gelu(x)?,
                };
                Ok(match onto {
                    Some(residual) => down.forward_onto(residual, &hidden)?,
                    None => down.forward(&hidden)?,
                })
            }
            #[cfg(feature = "cuda")]
            _ => Err(elsewhere()),
        }
    }
}

/// An error of the kernels' crate as one of candle's.
#[cfg(feature = "cuda")]
fn wrap(error: deltaconv_kernels::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// Two operands that are not in one place.
#[cfg(feature = "cuda")]
fn elsewhere() -> Error {
    candle_core::Error::Msg("one operand is on the processor and the other on the GPU".to_owned()).into()
}

/// softmax(Q Kᵀ / √d + bias) V for each head: [B, .., heads · d], the leading dimensions those of the queries. The bias is
/// one number a key, [B, keys] f32.
pub(super) fn attention(
    query: Projected<'_>,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let projected = [query, key, value];
    if projected.iter().any(|of| of.tensor.track_op()) {
        let given = projected.map(|of| of.tensor.detach());
        let [query, key, value] = [0, 1, 2].map(|i| Projected { tensor: &given[i], offset: projected[i].offset });
        let y = attention(query, key, value, heads, bias)?;
        return Ok(tracked::attention(y, projected, heads, bias)?);
    }
    #[cfg(feature = "cuda")]
    if query.tensor.device().is_cuda() {
        return cuda::attention(query, key, value, heads, bias);
    }
    let bias = bias.map(|bias| bias.flatten_all()?.to_vec1::<f32>()).transpose()?;
    Ok(cpu::attention(query, key, value, heads, bias.as_deref())?)
}

/// An activation of a tensor of any shape.
pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor, Error> {
    debug_assert!(!x.track_op(), "what models activate by itself are embeddings, before any layer");
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return Ok(cuda::activate(&*cuda::queue(x)?, x, cuda::activation(Some(activation)))?);
    }
    Ok(cpu::activate(x, activation)?)
}

/// x · Φ(x) in its tanh form, of a tensor of any shape.
pub(super) fn activate_gelu_tanh(x: &Tensor) -> Result<Tensor, Error> {
    debug_assert!(!x.track_op(), "what models activate by itself are embeddings, before any layer");
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return Ok(cuda::activate(&*cuda::queue(x)?, x, cuda::Activation::GeluTanh)?);
    }
    Ok(cpu::activate_gelu_tanh(x)?)
}

/// a + b, of one shape.
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() && !a.track_op() && !b.track_op() {
        return Ok(cuda::add(&*cuda::queue(a)?, a, b)?);
    }
    Ok(a.add(b)?)
}

/// [B, H, W, C₁] and [B, H, W, C₂] → [B, H, W, C₁ + C₂].
pub(super) fn join_channels(first: &Tensor, second: &Tensor) -> Result<Tensor, Error> {
    if first.track_op() || second.track_op() {
        return Ok(Tensor::cat(&[first, second], 3)?);
    }
    #[cfg(feature = "cuda")]
    if first.device().is_cuda() {
        return Ok(cuda::join_channels(&*cuda::queue(first)?, first, second)?);
    }
    Ok(cpu::join_channels(first, second)?)
}

/// One row of a table [B, n, C] f32: numbers for each channel of each sample.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) table: &'a Tensor,
    pub(super) index: usize,
}

impl Row<'_> {
    /// [B, C], flat.
    fn elements(self) -> candle_core::Result<Vec<f32>> {
        if self.index >= self.table.dim(1)? {
            bail!("row {} was asked for of a table of {:?}", self.index, self.table.dims());
        }
        self.tensor()?.flatten_all()?.to_vec1()
    }

    /// [B, C].
    pub(super) fn tensor(self) -> candle_core::Result<Tensor> {
        self.table.narrow(1, self.index, 1)?.squeeze(1)?.contiguous()
    }
}

/// Layer normalisation over the last dimension without weights of its own, then x · (1 + scale) + shift:
/// x [B, .., C] → the same shape.
pub(super) fn modulated_norm(x: &Tensor, eps: f32, scale: Row<'_>, shift: Row<'_>) -> Result<Tensor, Error> {
    if x.track_op() {
        let y = modulated_norm(&x.detach(), eps, scale, shift)?;
        #[cfg(feature = "cuda")]
        if y.device().is_cuda() {
            let (given, table, index) = (x.detach(), scale.table.clone(), scale.index);
            let back = move |gradient: &Tensor| {
                let scale = cuda::Row { table: &table, index };
                let queue = cuda::Queue::of(given.device()).map_err(wrap)?;
                cuda::modulated_norm_gradient(&queue, &given, eps, scale, gradient).map_err(wrap)
            };
            return Ok(attach(x, y, back)?);
        }
        let (given, scale) = (x.detach(), scale.elements()?);
        let back = move |gradient: &Tensor| cpu::modulated_norm_gradient(&given, eps, &scale, gradient);
        return Ok(attach(x, y, back)?);
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let [scale, shift] = [scale, shift].map(|Row { table, index }| cuda::Row { table, index });
        return Ok(cuda::modulated_norm(&*cuda::queue(x)?, x, eps, scale, shift)?);
    }
    Ok(cpu::modulated_norm(x, eps, &scale.elements()?, &shift.elements()?)?)
}

/// residual + gate · x: both [B, .., C].
pub(super) fn add_gated(residual: &Tensor, gate: Row<'_>, x: &Tensor) -> Result<Tensor, Error> {
    if residual.track_op() || x.track_op() {
        return Ok(residual.add(&gated(gate, x)?)?);
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let Row { table, index } = gate;
        return Ok(cuda::add_gated(&*cuda::queue(x)?, residual, cuda::Row { table, index }, x)?);
    }
    Ok(cpu::add_gated(residual, &gate.elements()?, x)?)
}

/// gate · x: [B, .., C].
pub(super) fn gated(gate: Row<'_>, x: &Tensor) -> Result<Tensor, Error> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let (table, index) = (gate.table.clone(), gate.index);
        let gated = move |x: &Tensor| {
            let queue = cuda::Queue::of(x.device()).map_err(wrap)?;
            cuda::gated(&queue, cuda::Row { table: &table, index }, x).map_err(wrap)
        };
        let y = gated(&x.detach())?;
        return Ok(if x.track_op() { attach(x, y, gated)? } else { y });
    }
    let gate = gate.tensor()?;
    let gate = (2..x.rank()).try_fold(gate, |gate, _| gate.unsqueeze(1))?;
    Ok(x.broadcast_mul(&gate)?)
}

/// diffusers' `get_timestep_embedding`: timesteps [B] → [B, channels], where the model is.
pub(super) fn sinusoids(timesteps: &[f32], time: &TimeEmbedding, place: &Place) -> Result<Tensor, Error> {
    place.take(&cpu::sinusoids(timesteps, time)?)
}
