use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::super::product::Epilogue;
use super::queue::{Multiplication, Queue, expect, operand};
use crate::error::{Error, Result};

/// y = x Wᵀ + b over the last dimension; a 1×1 convolution of maps that are channels last.
#[derive(Debug)]
pub struct Linear {
    queue: Arc<Queue>,
    input: usize,
    output: usize,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From PyTorch's layout: `weight` [output, input], `bias` [output]; held in `dtype`, which is that of its tensors.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(
        queue: &Arc<Queue>,
        dtype: DType,
        (input, output): (usize, usize),
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        Ok(Self {
            weight: queue.parameters(weight, &[output, input], dtype)?,
            bias: bias.map(|bias| queue.parameters(bias, &[output], dtype)).transpose()?,
            queue: queue.clone(),
            input,
            output,
        })
    }

    /// x [.., input] → [.., output].
    ///
    /// # Errors
    /// A tensor of other channels or another dtype, or not contiguous.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, false)
    }

    /// x [.., input] → residual + x Wᵀ + b, both [.., output].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual), false)
    }

    /// x [.., input] → gelu(x Wᵀ + b), [.., output], with GELU's tanh form.
    ///
    /// # Errors
    /// As [`Self::forward`]; a linear without bias.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, true)
    }

    /// The gradient of x [.., input] from that of x Wᵀ + b, [.., output].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn input_gradient(&self, gradient: &Tensor) -> Result<Tensor> {
        let (view, kind) = operand(gradient, "gradient")?;
        let Some((_, leading)) = view.dims.split_last().filter(|(last, _)| **last == self.output) else {
            let (found, expected) = (format!("{:?}", view.dims), format!("[.., {}]", self.output));
            return Err(Error::Tensor { what: "gradient", found, expected });
        };
        let (x, x_at) = self.queue.empty(&[leading, &[self.input]].concat(), kind)?;
        let multiplication = Multiplication {
            kind,
            batch: 1,
            rows: leading.iter().product(),
            input: self.output,
            output: self.input,
            epilogue: Epilogue::None,
            back: true,
            x: view.at,
            weight: operand(&self.weight, "weight")?.0.address(kind)?,
            bias: 0,
            residual: None,
            y: x_at,
        };
        // SAFETY: the tensors have the multiplication's sizes and type.
        unsafe { self.queue.multiply(&multiplication)? };
        Ok(x)
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>, gelu: bool) -> Result<Tensor> {
        let (view, kind) = operand(x, "x")?;
        let Some((&channels, leading)) = view.dims.split_last().filter(|(last, _)| **last == self.input) else {
            let (found, expected) = (format!("{:?}", view.dims), format!("[.., {}]", self.input));
            return Err(Error::Tensor { what: "x", found, expected });
        };
        let dims = [leading, &[self.output]].concat();
        let residual = residual.map(|residual| operand(residual, "residual")).transpose()?;
        let residual = residual.map(|(view, _)| expect(&view, "residual", &dims, kind)).transpose()?;
        let bias = self.bias.as_ref().map(|bias| operand(bias, "bias")).transpose()?;
        let epilogue = match (&bias, gelu) {
            (Some(_), true) => Epilogue::BiasGelu,
            (Some(_), false) => Epilogue::Bias,
            (None, false) => Epilogue::None,
            (None, true) => {
                let (found, expected) = ("none".to_owned(), "one, with GELU after it".to_owned());
                return Err(Error::Tensor { what: "bias", found, expected });
            }
        };
        let (y, y_at) = self.queue.empty(&dims, kind)?;
        let multiplication = Multiplication {
            kind,
            batch: 1,
            rows: leading.iter().product(),
            input: channels,
            output: self.output,
            epilogue,
            back: false,
            x: view.at,
            weight: operand(&self.weight, "weight")?.0.address(kind)?,
            bias: bias.map_or(Ok(0), |(bias, _)| bias.address(kind))?,
            residual,
            y: y_at,
        };
        // SAFETY: the tensors have the multiplication's sizes and type.
        unsafe { self.queue.multiply(&multiplication)? };
        Ok(y)
    }
}
