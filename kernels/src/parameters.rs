//! A block's tensors in one contiguous arena.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result, check_length};
use crate::shape::{BlockShape, TensorShape};

/// All tensors of one block, f32, back to back in the order of [`BlockShape::tensors`].
///
/// Weights, gradients, moments and averages are all of this type, so that one pass over
/// [`Parameters::values`] updates a whole block.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    layout: Arc<Layout>,
    values: Vec<f32>,
}

#[derive(Debug, PartialEq)]
struct Layout {
    shape: BlockShape,
    tensors: Vec<(TensorShape, Range<usize>)>,
}

impl Parameters {
    /// Parameters of the given shape, all zero.
    pub fn zeros(shape: &BlockShape) -> Self {
        let mut end = 0;
        let tensors = shape
            .tensors()
            .into_iter()
            .map(|tensor| {
                let start = end;
                end += tensor.len();
                (tensor, start..end)
            })
            .collect();
        let layout = Arc::new(Layout { shape: shape.clone(), tensors });
        Self { layout, values: vec![0.0; end] }
    }

    /// Parameters of the same shape, all zero.
    pub fn zeros_like(&self) -> Self {
        Self { layout: self.layout.clone(), values: vec![0.0; self.values.len()] }
    }

    /// The shape the parameters were laid out for.
    pub fn shape(&self) -> &BlockShape {
        &self.layout.shape
    }

    /// The tensor of that name, row-major.
    pub fn get(&self, name: &str) -> Result<&[f32]> {
        Ok(&self.values[self.range(name)?])
    }

    /// The tensor of that name, row-major.
    pub fn get_mut(&mut self, name: &str) -> Result<&mut [f32]> {
        let range = self.range(name)?;
        Ok(&mut self.values[range])
    }

    /// Copies `values`, row-major, into the tensor of that name.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let tensor = self.get_mut(name)?;
        check_length(name, tensor.len(), values.len())?;
        tensor.copy_from_slice(values);
        Ok(())
    }

    /// Every tensor with its values, in the order of the arena.
    pub fn iter(&self) -> impl Iterator<Item = (&TensorShape, &[f32])> {
        let tensors = self.layout.tensors.iter();
        tensors.map(|(tensor, range)| (tensor, &self.values[range.clone()]))
    }

    /// The arena.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The arena.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    fn range(&self, name: &str) -> Result<Range<usize>> {
        let found = self.layout.tensors.iter().find(|(tensor, _)| tensor.name == name);
        match found {
            Some((_, range)) => Ok(range.clone()),
            None => Err(Error::UnknownTensor(name.to_owned())),
        }
    }

    /// Refuses parameters that were laid out for another shape.
    pub(crate) fn check_shape(&self, what: &'static str, shape: &BlockShape) -> Result<()> {
        if self.shape() == shape { Ok(()) } else { Err(Error::OtherShape(what)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Gate;

    #[test]
    fn tensors_tile_the_arena() {
        let shape = BlockShape::new(20, 0.5, 9, vec![1.0, 0.5], Gate::Scaled).unwrap();
        let mut parameters = Parameters::zeros(&shape);
        parameters.get_mut("gates.1.conv_spatial.weight").unwrap().fill(1.0);
        parameters.set("conv_pool.bias", &[2.0; 20]).unwrap();
        let total: usize = parameters.iter().map(|(_, values)| values.len()).sum();
        assert_eq!(total, parameters.values().len());
        let sum: f32 = parameters.values().iter().sum();
        assert_eq!(sum, 81.0 * 10.0 + 40.0);
        assert!(matches!(parameters.get("conv_in.bias"), Err(Error::UnknownTensor(_))));
        assert!(matches!(parameters.set("conv_up.bias", &[0.0; 3]), Err(Error::Length { .. })));
        assert!(parameters.zeros_like().values().iter().all(|&value| value == 0.0));
    }
}
