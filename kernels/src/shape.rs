//! The sizes that determine a block, and the tensors that follow from them.

use crate::error::{Error, Result};

/// How the two halves of the depthwise convolution's channels are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `a · b · √(d/2)`, as in the blocks of the UNets.
    Scaled,
    /// `a · sigmoid(b)`, as in the blocks of PixArt.
    Sigmoid,
}

/// The sizes of one block. Fields are read-only so that what [`BlockShape::new`] checked stays true.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockShape {
    channels: usize,
    inner: usize,
    kernel_size: usize,
    scales: Vec<f64>,
    gate: Gate,
}

/// One tensor of a block: its published name without the layer prefix, and its dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    /// For example `gates.0.conv_spatial.weight`.
    pub name: String,
    /// Outermost first.
    pub dims: Vec<usize>,
}

impl TensorShape {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no values; never true for the tensors of a block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl BlockShape {
    /// Checks the sizes: `channels · inter_ratio` whole, even and at least 2; `kernel_size` odd and
    /// at most 31; the first scale 1 and all of them within (0, 1].
    pub fn new(channels: usize, inter_ratio: f64, kernel_size: usize, scales: Vec<f64>, gate: Gate) -> Result<Self> {
        let exact = channels as f64 * inter_ratio;
        let whole = exact.round();
        // Ratios such as 1/3 are not exact in binary; anything further off is a mistake.
        let is_whole = (exact - whole).abs() <= 1e-6 * whole.abs();
        if !is_whole || !(2.0..=u32::MAX as f64).contains(&whole) || whole % 2.0 != 0.0 {
            return Err(Error::Inner { channels, inter_ratio });
        }
        if kernel_size.is_multiple_of(2) || kernel_size > 31 {
            return Err(Error::KernelSize(kernel_size));
        }
        let in_range = scales.iter().all(|&scale| scale > 0.0 && scale <= 1.0);
        if scales.first() != Some(&1.0) || !in_range {
            return Err(Error::Scales(scales));
        }
        Ok(Self { channels, inner: whole as usize, kernel_size, scales, gate })
    }

    /// C: channels of the block's input and output.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// d: channels of the depthwise convolutions; even.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// K: odd, from 1 to 31.
    pub fn kernel_size(&self) -> usize {
        self.kernel_size
    }

    /// The scales of the pyramid; the first is 1.
    pub fn scales(&self) -> &[f64] {
        &self.scales
    }

    /// The gate.
    pub fn gate(&self) -> Gate {
        self.gate
    }

    /// d/2: channels of one scale's gate output.
    pub fn half(&self) -> usize {
        self.inner / 2
    }

    /// S·d/2: channels of the concatenated gate outputs, which conv_out maps back to C.
    pub fn features(&self) -> usize {
        self.scales.len() * self.half()
    }

    /// The size (⌊H·s⌋, ⌊W·s⌋) of a map at one scale; an error where nothing is left of it.
    pub fn scaled_map(&self, height: usize, width: usize, scale: f64) -> Result<(usize, usize)> {
        let scaled = |length: usize| (length as f64 * scale).floor() as usize;
        match (scaled(height), scaled(width)) {
            (0, _) | (_, 0) => Err(Error::MapTooSmall { height, width, scale }),
            size => Ok(size),
        }
    }

    /// The block's tensors in the fixed order of [`crate::Parameters`].
    pub fn tensors(&self) -> Vec<TensorShape> {
        let tensor = |name: &str, dims: &[usize]| TensorShape { name: name.to_owned(), dims: dims.to_vec() };
        let (c, d, k) = (self.channels, self.inner, self.kernel_size);
        let mut tensors = vec![tensor("conv_up.weight", &[d, c]), tensor("conv_up.bias", &[d])];
        for index in 0..self.scales.len() {
            tensors.push(tensor(&format!("gates.{index}.conv_spatial.weight"), &[k, k, d]));
        }
        // conv_pool comes last: the CPU path sums its gradient over the batch at once and keeps
        // partial sums for what stands before it only.
        tensors.extend([
            tensor("conv_out.weight", &[c, self.features()]),
            tensor("conv_out.bias", &[c]),
            tensor("conv_pool.weight", &[c, c]),
            tensor("conv_pool.bias", &[c]),
        ]);
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let new = |channels, ratio, kernel, scales: &[f64]| {
            BlockShape::new(channels, ratio, kernel, scales.to_vec(), Gate::Scaled)
        };
        assert!(new(64, 0.5, 7, &[1.0, 0.5]).is_ok());
        assert!(matches!(new(6, 0.5, 7, &[1.0]), Err(Error::Inner { .. })), "3 is odd");
        assert!(matches!(new(64, f64::NAN, 7, &[1.0]), Err(Error::Inner { .. })));
        assert!(matches!(new(64, -0.5, 7, &[1.0]), Err(Error::Inner { .. })));
        assert!(matches!(new(10, 0.25, 7, &[1.0]), Err(Error::Inner { .. })));
        assert!(matches!(new(0, 0.5, 7, &[1.0]), Err(Error::Inner { .. })));
        for kernel in [0, 2, 32, 33] {
            assert_eq!(new(64, 0.5, kernel, &[1.0]), Err(Error::KernelSize(kernel)));
        }
        for scales in [&[][..], &[0.5], &[1.0, 0.0], &[1.0, 1.5], &[1.0, f64::NAN]] {
            assert!(matches!(new(64, 0.5, 7, scales), Err(Error::Scales(_))), "{scales:?}");
        }
        let shape = new(64, 0.5, 7, &[1.0, 0.5]).unwrap();
        assert_eq!(shape.scaled_map(9, 7, 0.5), Ok((4, 3)));
        assert!(matches!(shape.scaled_map(1, 7, 0.5), Err(Error::MapTooSmall { .. })));
    }
}
