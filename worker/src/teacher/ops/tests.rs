//! The operations against the same ones put together from candle's.

use candle_core::{D, Device, Tensor};
use candle_nn::ops::softmax;
use deltaconv_proto::teacher::Activation;

use super::{
    Added, Conv, FeedForward, FeedForwardActivation, GroupNorm, Heads, LayerNorm, Linear, Padding, Place, Projected,
    Row, add_gated, attention, attention_maps, modulated_norm,
};

type Result<T> = std::result::Result<T, super::Error>;

/// Numbers of about −1 to 1.
fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn elements(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let norm = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let error = norm(&ours.sub(theirs).unwrap()) / norm(theirs);
    // candle's own layer norm is the least exact of all, with its one pass over values far from zero.
    assert!(error < 5e-6, "{what}: {error}");
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 2, 3, 1))?.contiguous()?)
}

#[test]
fn convolutions() -> Result<()> {
    for (kernel, stride, before, after) in
        [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (5, 1, 2, 2), (4, 1, 1, 1), (1, 1, 0, 0)]
    {
        let (x, weight, bias) = (numbers(&[2, 7, 9, 20], 1), numbers(&[35, 7, kernel, kernel], 2), numbers(&[35], 3));
        let padded = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        let expected = padded.conv2d(&weight, 0, stride, 1, 1)?.broadcast_add(&bias.reshape((1, 35, 1, 1))?)?;
        let shift = numbers(&[2, 35], 4);
        let residual = numbers(expected.dims(), 5);
        let padding = Padding { before, after };
        let place = Place::default();
        let conv = Conv::new(&place, (7, 35), kernel, stride, padding, &elements(&weight), elements(&bias))?;
        let what = format!("{kernel}×{kernel}, stride {stride}");
        assert_close(&what, &conv.forward(&channels_last(&x)?)?, &channels_last(&expected)?);

        let added = expected.broadcast_add(&shift.reshape((2, 35, 1, 1))?)?.add(&residual)?.affine(0.5, 0.0)?;
        let residual = channels_last(&residual)?;
        let extra = Added { shift: Some(&shift), residual: Some(&residual), divisor: Some(2.0) };
        assert_close(&what, &conv.forward_adding(&channels_last(&x)?, extra)?, &channels_last(&added)?);
    }
    Ok(())
}

#[test]
fn convolutions_of_resized_maps() -> Result<()> {
    let (x, weight, bias) = (numbers(&[1, 3, 5, 4], 1), numbers(&[2, 3, 3, 3], 2), numbers(&[2], 3));
    let (place, padding) = (Place::default(), Padding { before: 1, after: 1 });
    let conv = Conv::new(&place, (3, 2), 3, 1, padding, &elements(&weight), elements(&bias))?;
    for size in [(10, 8), (9, 7)] {
        let resized = x.upsample_nearest2d(size.0, size.1)?;
        let expected = conv.forward(&channels_last(&resized)?)?;
        assert_close("resized", &conv.forward_resized(&channels_last(&x)?, size)?, &expected);
    }
    Ok(())
}

#[test]
fn norms() -> Result<()> {
    let (x, weight, bias) = (numbers(&[2, 5, 9, 24], 1).affine(1.0, 3.0)?, numbers(&[24], 2), numbers(&[24], 3));
    let grouped = x.reshape((2, 45, 6, 4))?.permute((0, 2, 1, 3))?.reshape((2, 6, 180))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let deviation = centred.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, 1e-5)?.sqrt()?;
    let normed =
        centred.broadcast_div(&deviation)?.reshape((2, 6, 45, 4))?.permute((0, 2, 1, 3))?.reshape((2, 5, 9, 24))?;
    let expected = normed.broadcast_mul(&weight)?.broadcast_add(&bias)?;
    let place = Place::default();
    let norm = GroupNorm::new(&place, 6, 1e-5, elements(&weight), elements(&bias))?;
    assert_close("group norm", &norm.forward(&x, None)?, &expected);
    assert_close("group norm and silu", &norm.forward(&x, Some(Activation::Silu))?, &expected.silu()?);

    let scale_shift = numbers(&[2, 48], 4);
    let scale = scale_shift.narrow(1, 0, 24)?.reshape((2, 1, 1, 24))?;
    let shift = scale_shift.narrow(1, 24, 24)?.reshape((2, 1, 1, 24))?;
    let modulated = expected.broadcast_mul(&scale.affine(1.0, 1.0)?)?.broadcast_add(&shift)?.relu()?;
    assert_close("modulated", &norm.forward_modulated(&x, &scale_shift, Activation::Relu)?, &modulated);

    let ones = numbers(&[24], 0).ones_like()?;
    let plain = candle_nn::ops::layer_norm(&x, &ones, &ones.zeros_like()?, 1e-6)?;
    let modulated = plain.broadcast_mul(&scale.affine(1.0, 1.0)?)?.broadcast_add(&shift)?;
    // A table with a row between the two.
    let table = Tensor::cat(&[&scale, &x.narrow(1, 0, 1)?.narrow(2, 0, 1)?, &shift], 1)?.squeeze(2)?;
    let [scales, shifts] = [0, 2].map(|index| Row { table: &table, index });
    assert_close("modulated layer norm", &modulated_norm(&x, 1e-6, scales, shifts)?, &modulated);
    let gated = x.add(&modulated.broadcast_mul(&scale)?)?;
    assert_close("gated", &add_gated(&x, scales, &modulated)?, &gated);

    let expected = candle_nn::ops::layer_norm(&x, &weight, &bias, 1e-5)?;
    let norm = LayerNorm::new(&place, 1e-5, elements(&weight), elements(&bias))?;
    assert_close("layer norm", &norm.forward(&x)?, &expected);
    Ok(())
}

#[test]
fn attention_of_heads() -> Result<()> {
    for (queries, keys, count, dim) in [(35, 35, 3, 5), (64, 4, 2, 16), (7, 70, 1, 40)] {
        let inner = count * dim;
        let split = |x: &Tensor| x.reshape((2, x.dim(1)?, count, dim))?.transpose(1, 2)?.contiguous();
        let (q, kv) = (numbers(&[2, queries, inner], 1), numbers(&[2, keys, 2 * inner], 2).affine(3.0, 0.0)?);
        let (k, v) = (kv.narrow(2, 0, inner)?, kv.narrow(2, inner, inner)?);
        let scores = split(&q)?.matmul(&split(&k)?.t()?)?.affine((dim as f64).powf(-0.5), 0.0)?;
        let maps = softmax(&scores, D::Minus1)?;
        let expected = maps.matmul(&split(&v)?)?.transpose(1, 2)?.reshape((2, queries, inner))?;
        let [key, value] = [0, inner].map(|offset| Projected { tensor: &kv, offset });
        let ours = attention(Projected { tensor: &q, offset: 0 }, key, value, Heads { count, dim }, None)?;
        assert_close(&format!("{queries}×{keys}, {count} heads of {dim}"), &ours, &expected);

        let rows = attention_maps(Projected { tensor: &q, offset: 0 }, key, Heads { count, dim }, |map| {
            let mut rows = Vec::new();
            map.for_each_row(|query, row| {
                assert_eq!(rows.len(), query * keys);
                rows.extend_from_slice(row);
            });
            rows
        })?;
        let ours = Tensor::from_vec(rows.concat(), (2, count, queries, keys), &Device::Cpu)?;
        assert_close(&format!("maps of {queries}×{keys}"), &ours, &maps);

        let bias = numbers(&[2, keys], 3).affine(4.0, 0.0)?;
        let biased = scores.broadcast_add(&bias.reshape((2, 1, 1, keys))?)?;
        let expected =
            softmax(&biased, D::Minus1)?.matmul(&split(&v)?)?.transpose(1, 2)?.reshape((2, queries, inner))?;
        let ours = attention(Projected { tensor: &q, offset: 0 }, key, value, Heads { count, dim }, Some(&bias))?;
        assert_close(&format!("{queries}×{keys} with a bias"), &ours, &expected);
    }
    Ok(())
}

#[test]
fn linears_and_the_feed_forward() -> Result<()> {
    let linear = |input: usize, output: usize, seed| {
        let (weight, bias) = (numbers(&[output, input], seed), numbers(&[output], seed + 1));
        let ours = Linear::new(&Place::default(), (input, output), &elements(&weight), Some(elements(&bias)));
        (ours, move |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_matmul(&weight.t()?)?.broadcast_add(&bias)?) })
    };
    let (x, residual) = (numbers(&[2, 70, 9], 1), numbers(&[2, 70, 9], 2));
    let (up, up_expected) = linear(9, 72, 3);
    let (down, down_expected) = linear(36, 9, 5);
    let (up, down) = (up?, down?);
    let both = up_expected(&x)?;
    assert_close("linear", &up.forward(&x)?, &both);
    let hidden = both.narrow(2, 0, 36)?.mul(&both.narrow(2, 36, 36)?.gelu_erf()?)?;
    let expected = residual.add(&down_expected(&hidden)?)?;
    assert_close(
        "feed-forward",
        &FeedForward { activation: FeedForwardActivation::Geglu, up, down }.forward_onto(&residual, &x)?,
        &expected,
    );
    Ok(())
}
