//! Regressions: a block's last linears in closed form, of a training's first weights and of its best block.

use deltaconv_kernels::cpu::{Aim, Ridge, Workspace};
use deltaconv_kernels::{BlockShape, Error as KernelError, Gate, Parameters};
use deltaconv_proto::v1::{LayerPlan, Recipe};

use super::attended::Attended;
use super::initial;
use super::training::Training;
use crate::shards::{Feed, LayerData, Rows};
use crate::task::{Context, Error};

/// Pixels for each unknown, at the least, if there are as many.
const PIXELS: usize = 64;
/// And samples for each channel: what conv_pool sees is the same in all of a sample's pixels.
const SAMPLES: usize = 8;
/// Penalties that are tried, over the mean of the diagonal. What does best on held-out samples is taken: where samples are
/// few for the channels, the larger ones.
const PENALTIES: [f64; 3] = [1e-6, 1e-4, 1e-2];
/// Numbers in a batch's inputs, at most, of which a few copies are made.
const NUMBERS: usize = 1 << 22;

/// The training samples that a regression is over, in batches of one bucket each: evenly spaced, as many as determine the
/// unknowns well, and no more, since each goes through the block on the processor.
pub(super) fn batches(data: &LayerData, shape: &BlockShape) -> Vec<Vec<usize>> {
    let training = 0..data.held_out().start;
    let (all, channels) = (training.len(), shape.channels());
    let pixels = (data.numbers(training.clone()) / channels / all.max(1)).max(1);
    let wanted = (PIXELS * Ridge::unknowns(shape)).div_ceil(pixels).max(SAMPLES * channels).min(all);
    // Of every stretch that is as long as any other, the first one.
    let is_chosen = |sample: &usize| (sample + 1) * wanted / all > sample * wanted / all;
    let by_bucket = data.by_bucket(training).into_iter().filter(|samples| !samples.is_empty());
    let cut = |samples: Vec<usize>| {
        let most = (NUMBERS / data.numbers(samples[0]..samples[0] + 1).max(1)).max(1);
        let chosen: Vec<usize> = samples.into_iter().filter(is_chosen).collect();
        chosen.chunks(most).map(<[usize]>::to_vec).collect::<Vec<_>>()
    };
    by_bucket.flat_map(cut).collect()
}

/// Initial gates that a regression is tried for whatever the teacher, by name: as they are drawn, open, and wide.
fn candidates(drawn: &Parameters) -> Result<Vec<(&'static str, Parameters)>, Error> {
    let (mut open, mut wide) = (drawn.clone(), drawn.clone());
    initial::widen(&mut wide)?;
    if drawn.shape().gate() == Gate::Sigmoid {
        // sigmoid(b) is around a half already.
        return Ok(vec![("drawn", drawn.clone()), ("wide", wide)]);
    }
    initial::open(&mut open)?;
    initial::open(&mut wide)?;
    Ok(vec![("drawn", drawn.clone()), ("open", open), ("open and wide", wide)])
}

/// Has training start from the solution for its initial gates, those of the candidates that do best on held-out samples. The
/// next `batches` of the feed are those of the regression.
pub(super) fn start(
    context: &Context,
    layer: &LayerPlan,
    training: &mut Training,
    (feed, batches): (&mut Feed, usize),
    data: &LayerData,
) -> Result<(), Error> {
    let drawn = training.start().weights.clone();
    let mut candidates = candidates(&drawn)?;
    let Some(first) = Taken::next(context, feed)? else { return Ok(()) };
    if context.job.recipe.as_ref().is_some_and(Recipe::looks_at_attention) {
        let attended = Attended::load(context, layer)?.gates(&drawn, &first.rows, first.size)?;
        candidates.push(("attended", attended));
    }
    let (names, gates): (Vec<_>, Vec<_>) = candidates.into_iter().unzip();
    let rest = batches.saturating_sub(1);
    let Some(equations) = equations(context, &gates, Some(first), feed, rest)? else { return Ok(()) };
    let mut best: Option<(Parameters, f64)> = None;
    for ((ridge, gates), name) in equations.iter().zip(&gates).zip(names) {
        let found = solve(ridge, gates, |block| training.measure_on_host(block, data))?;
        let error = found.as_ref().map(|(_, error)| *error);
        tracing::debug!(task = %context.task, gates = name, error, "solved for a start");
        best = best.into_iter().chain(found).min_by(|(_, a), (_, b)| a.total_cmp(b));
    }
    // What it would have started from otherwise is what it starts from then, and reported as that.
    training.start_from(best.map_or(drawn, |(block, _)| block), data)
}

/// Solves for the best block's gates. The block stays as it was if that does no better.
pub(super) fn end(context: &Context, training: &mut Training, data: &mut LayerData) -> Result<(), Error> {
    let gates = training.block().clone();
    let order = batches(data, gates.shape());
    let count = order.len();
    let mut feed = data.stream(order.into_iter(), 0);
    let Some(equations) = equations(context, std::slice::from_ref(&gates), None, &mut feed, count)? else {
        return Ok(());
    };
    if let Some((block, error)) = solve(&equations[0], &gates, |block| training.measure_on_host(block, data))? {
        let solved = training.end_with(block, error, data)?;
        tracing::debug!(task = %context.task, ?solved, "solved for the linears of the best block");
    }
    Ok(())
}

/// A batch on the host.
struct Taken {
    rows: Rows,
    size: [usize; 3],
}

impl Taken {
    /// The feed's next one; `None` where the attempt is to stop.
    fn next(context: &Context, feed: &mut Feed) -> Result<Option<Self>, Error> {
        let Some(batch) = feed.next(&context.supervision)? else { return Ok(None) };
        let (size, mut rows) = (batch.size, Rows::default());
        batch.on_host(&context.accelerator)?.to_f32(&mut rows);
        Ok(Some(Self { rows, size }))
    }
}

/// The equations of `first` and the next batches of the feed, for each of these gates; `None` where the attempt is to stop.
///
/// All of a sample's differences count alike, by the root mean square of its weights: with other ones for each channel every
/// channel would have equations of its own. Where weights are a sample's, as in UNets, it is the same.
fn equations(
    context: &Context,
    gates: &[Parameters],
    first: Option<Taken>,
    feed: &mut Feed,
    batches: usize,
) -> Result<Option<Vec<Ridge>>, Error> {
    let mut equations: Vec<Ridge> = gates.iter().map(|gates| Ridge::new(gates.shape())).collect();
    let mut workspace = Workspace::default();
    let mut add_all = |Taken { rows, size }: Taken| {
        let mut each = equations.iter_mut().zip(gates);
        each.try_for_each(|(ridge, gates)| add(ridge, gates, &rows, size, &mut workspace))
    };
    first.map(&mut add_all).transpose()?;
    for _ in 0..batches {
        let Some(batch) = Taken::next(context, feed)? else { return Ok(None) };
        add_all(batch)?;
    }
    Ok(Some(equations))
}

fn add(
    ridge: &mut Ridge,
    gates: &Parameters,
    rows: &Rows,
    size: [usize; 3],
    workspace: &mut Workspace,
) -> Result<(), Error> {
    let of_sample = |weights: &[f32]| {
        let squares: f64 = weights.iter().map(|weight| f64::from(*weight).powi(2)).sum();
        (squares / weights.len() as f64).sqrt()
    };
    let channels = gates.shape().channels();
    let weights: Vec<f64> = match rows.weights() {
        None => vec![1.0; size[0]],
        Some(weights) => weights.chunks_exact(channels).map(of_sample).collect(),
    };
    Ok(ridge.add(gates, &rows.input, Aim { target: &rows.output, weights: &weights }, size, workspace)?)
}

/// The solution with the least error by `measure`, and that error; `None` where there is none.
fn solve(
    ridge: &Ridge,
    gates: &Parameters,
    mut measure: impl FnMut(&Parameters) -> Result<f64, Error>,
) -> Result<Option<(Parameters, f64)>, Error> {
    let mut best: Option<(Parameters, f64)> = None;
    for penalty in PENALTIES {
        let mut block = gates.clone();
        match ridge.solve(penalty, &mut block) {
            Ok(()) => {}
            Err(error @ KernelError::Singular { .. }) => {
                tracing::warn!(%error, penalty, "a block's linears can't be solved for");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let error = measure(&block)?;
        tracing::debug!(penalty, error, "solved for a block's linears");
        if error.is_finite() && best.as_ref().is_none_or(|(_, least)| error < *least) {
            best = Some((block, error));
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::v1::{LayerPlan, Map};

    use super::super::training::tests;
    use super::*;

    /// The equations of all that `data` has for a regression.
    fn equations(gates: &Parameters, data: &LayerData) -> Ridge {
        let mut ridge = Ridge::new(gates.shape());
        let (mut rows, mut workspace) = (Rows::default(), Workspace::default());
        for samples in batches(data, gates.shape()) {
            let batch = data.batch(&samples).expect("they are there");
            batch.to_f32(&mut rows);
            add(&mut ridge, gates, &rows, batch.size, &mut workspace).expect("a batch");
        }
        ridge
    }

    fn solved(training: &mut Training, gates: &Parameters, data: &LayerData) -> (Parameters, f64) {
        let found = solve(&equations(gates, data), gates, |block| training.measure_on_host(block, data));
        found.expect("no failure").expect("a solution")
    }

    #[test]
    fn a_start_by_regression_is_better_than_what_it_had() {
        let maps = [(6, 4), (4, 6), (5, 5)].map(|(height, width)| Map { height, width }).to_vec();
        let layers = [
            tests::layer(),
            LayerPlan { maps, ..tests::layer() },
            // Channels count differently, so that what is solved for isn't quite what is measured.
            LayerPlan { weighted: true, ..tests::layer() },
        ];
        for layer in layers {
            let data = LayerData::made_up(&layer, 200, 8);
            let mut training = tests::of(&layer, &data);
            let drawn = training.start().weights.clone();
            let before = training.measure_on_host(&drawn, &data).expect("measured");
            let errors = candidates(&drawn).expect("gates").into_iter().map(|(_, gates)| {
                let (block, error) = solved(&mut training, &gates, &data);
                (error, block)
            });
            let errors: Vec<(f64, Parameters)> = errors.collect();
            // A block as it is drawn does no better than zeros. Products of random projections tell the mean alone, and gates
            // that are open some of the rest, too.
            let (after, block) = errors[1].clone();
            assert!(
                before > 1.0 && errors[0].0 < 0.9 && after < 0.9 * errors[0].0,
                "{before}, {}, {after}",
                errors[0].0
            );
            training.start_from(block.clone(), &data).expect("started");
            training.measure_start(&data).expect("measured");
            assert_eq!((training.held_out_error(), training.started_from()), (after, Some(&block)));
        }
    }

    #[test]
    fn the_best_block_stays_where_solving_makes_it_no_better() {
        let data = LayerData::made_up(&tests::layer(), 200, 8);
        let mut training = tests::of(&tests::layer(), &data);
        for batch in data.batches(1, 4, 0).take(40) {
            training.take_step(&batch, &data).expect("a step");
        }
        let (trained, before) = (training.block().clone(), training.held_out_error());
        let mut worse = trained.clone();
        worse.get_mut("conv_out.weight").expect("it is there").fill(0.5);
        let error = training.measure_on_host(&worse, &data).expect("measured");
        assert!(!training.end_with(worse, error, &data).expect("measured").is_kept());
        assert_eq!((training.block(), training.held_out_error()), (&trained, before));

        let (block, after) = solved(&mut training, &trained, &data);
        let found = training.end_with(block.clone(), after, &data).expect("measured");
        assert!(found.is_kept() && found.before == before && after < before, "{found:?}");
        assert_eq!((training.block(), training.held_out_error()), (&block, after));
    }

    #[test]
    fn samples_are_evenly_spaced_and_as_many_as_are_needed() {
        let layer = tests::layer();
        let data = LayerData::made_up(&layer, 1000, 8);
        let shape = super::super::block_shape(&layer).expect("a block");
        let chosen = batches(&data, &shape).concat();
        // 8 of each of 16 channels; 64 pixels of each of 25 unknowns would be 67 samples.
        assert_eq!(chosen.len(), 128);
        assert!(chosen.windows(2).all(|pair| (7..=8).contains(&(pair[1] - pair[0]))), "{chosen:?}");
        let few = LayerData::made_up(&layer, 20, 8);
        assert_eq!(batches(&few, &shape).concat(), (0..20).collect::<Vec<_>>());
    }
}
