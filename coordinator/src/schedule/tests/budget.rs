//! How many steps layers are given in a further round.

use super::*;
use crate::plan::cost;

const EVEN: u32 = 400;

fn by_gain() -> v1::JobSpec {
    let recipe = spec().recipe.map(|recipe| v1::Recipe {
        warmup_steps: 20,
        rounds: 1,
        round_steps: EVEN,
        budget: Some(v1::Recipe::GAIN.to_owned()),
        ..recipe
    });
    v1::JobSpec { recipe, ..spec() }
}

/// Layers with maps of these sides, the first of which later rounds don't train.
pub(super) fn plan_of(sides: &[u32]) -> v1::JobPlan {
    let layer = |(index, side): (usize, &u32)| v1::LayerPlan {
        index: index as u32,
        name: format!("layer{index}"),
        channels: 64,
        height: *side,
        width: *side,
        kernel_size: 7,
        scales: vec![1.0, 0.5],
        inter_ratio: 0.5,
        ..v1::LayerPlan::default()
    };
    v1::JobPlan { layers: sides.iter().enumerate().map(layer).collect(), ..job_plan() }
}

/// Works on the job until the further round's distill tasks are leased, one to a worker, where the layers' replacement alone
/// costs these errors. Gives the steps that each layer is trained for by round.
fn given(plan: v1::JobPlan, errors: &[f64]) -> (Coordinator, JobId, [Vec<u32>; 2]) {
    let mut c = Coordinator::new();
    let (spec, planned) = (by_gain(), plan.clone());
    let job = c.run(|state, now, effects| state.submit(spec, planned, now, effects)).expect("accepted").0;
    let workers: Vec<WorkerId> = plan.layers.iter().map(|_| c.join()).collect();
    let mut steps = [vec![0; errors.len()], vec![0; errors.len()]];
    let mut reports: Vec<Vec<v1::AttemptReport>> = vec![Vec::new(); workers.len()];
    for _ in 0..40 {
        for (worker, reports) in workers.iter().zip(&mut reports) {
            for start in c.sync(worker, std::mem::take(reports)).start {
                let mut done = done(&start);
                let task = start.task.clone().and_then(|task| task.kind);
                if let (Some(v1::task_spec::Kind::Distill(task)), Some(v1::done::Output::Distill(output))) =
                    (task, &mut done.output)
                {
                    let index = task.layer.expect("a layer").index as usize;
                    steps[task.round as usize][index] = task.steps;
                    output.alone_error = task.alone.then_some(errors[index]);
                    if task.round == 1 {
                        continue;
                    }
                }
                reports.push(report(&start.lease, Report::Done(done)));
            }
            c.carry_out();
        }
    }
    (c, job, steps)
}

fn cost(plan: &v1::JobPlan, steps: &[u32]) -> f64 {
    let of = |(layer, steps): (&v1::LayerPlan, &u32)| cost::Block::planned(layer).total() as f64 * f64::from(*steps);
    plan.layers.iter().zip(steps).skip(1).map(of).sum()
}

#[test]
fn steps_go_where_most_is_gained_and_cost_what_even_ones_would() {
    let plan = plan_of(&[32, 32, 32, 16, 16]);
    let (mut c, job, [first, second]) = given(plan.clone(), &[0.01, 0.01, 0.0025, 0.0025, 0.01]);
    assert_eq!((first, second[0]), (vec![10; 5], 0));
    let ratio = |a: usize, b: usize| f64::from(second[a]) / f64::from(second[b]);
    // Of the same cost, four times the error gets twice the steps; of a quarter of the cost, the same error does.
    for (more, less) in [(1, 2), (4, 3), (3, 2)] {
        assert!((ratio(more, less) / 2.0 - 1.0).abs() < 0.1, "{second:?}");
    }
    let [spent, even] = [&second, &vec![EVEN; 5]].map(|steps| cost(&plan, steps));
    assert!(spent <= even && spent > even - cost(&plan, &[20; 5]), "{second:?} cost {spent} instead of {even}");
    assert!(second.iter().all(|steps| steps % 20 == 0), "{second:?}");

    let shown = |c: &Coordinator| -> Vec<u64> {
        c.state.status(&job, c.now).expect("known").layers.iter().map(|layer| layer.steps).collect()
    };
    let told = [vec![10], second[1..].iter().map(|steps| u64::from(*steps)).collect()].concat();
    assert_eq!(shown(&c), told);
    c.crash();
    assert_eq!(shown(&c), told);
    // Leases end, and whoever comes then is told the same.
    c.wait(TTL);
    let worker = c.join();
    let again = c.sync(&worker, Vec::new()).start.remove(0).task.and_then(|task| task.kind);
    let Some(v1::task_spec::Kind::Distill(again)) = again else { panic!("{again:?}") };
    assert_eq!(again.steps, second[again.layer.expect("a layer").index as usize]);
}

#[test]
fn no_layer_gets_less_than_a_quarter_or_more_than_four_times_as_much() {
    let plan = plan_of(&[32, 32, 8, 8, 8]);
    let (_, _, [_, steps]) = given(plan.clone(), &[0.01, 0.01, 1.0, 0.0, 1.0]);
    assert_eq!((&steps[2..], steps[1] < EVEN), (&[4 * EVEN, EVEN / 4, 4 * EVEN][..], true), "{steps:?}");
    assert!(cost(&plan, &steps) <= cost(&plan, &[EVEN; 5]));
    let (_, _, [_, of_nothing]) = given(plan, &[0.0; 5]);
    assert_eq!(of_nothing, [0, EVEN, EVEN, EVEN, EVEN]);
}
