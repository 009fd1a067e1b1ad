//! Layers that get a wider block after the first round.

use super::budget::plan_of;
use super::hybrid::worked;
use super::*;
use crate::plan;

fn widening(share: f64) -> v1::JobSpec {
    let recipe = spec().recipe.map(|recipe| v1::Recipe {
        rounds: 2,
        round_steps: 5,
        inter_ratio: 0.5,
        widen: Some(share),
        ..recipe
    });
    v1::JobSpec { recipe, ..spec() }
}

fn index(task: &v1::DistillTask) -> usize {
    task.layer.as_ref().map_or(0, |layer| layer.index as usize)
}

/// Inner widths of the blocks by layer.
fn widths(blocks: &[v1::BlockRef]) -> Vec<f64> {
    blocks.iter().map(|block| block.inter_ratio).collect()
}

#[test]
fn costly_layers_are_wider_after_the_first_round_and_everybody_is_told() {
    let errors = [0.5, 0.02, 0.005, 0.03];
    let planned = plan_of(&[16, 16, 16, 16]);
    let (mut c, job, given) = worked(planned.clone(), widening(0.01), |task, output| {
        output.alone_error = task.alone.then_some(errors[index(task)]);
    });
    // The first layer is trained in the first round alone, and the third one costs less than the share.
    let wide = [0.5, 1.0, 0.5, 1.0];
    let mut rounds = [0; 3];
    for task in given {
        match task.kind.clone().expect("a kind") {
            v1::task_spec::Kind::Distill(task) => {
                let (layer, round) = (index(&task), task.round as usize);
                let found = (task.start_inter_ratio, task.layer.expect("a layer").inter_ratio);
                let expected = [(0.0, 0.5), (0.5, wide[layer]), (wide[layer], wide[layer])];
                assert_eq!(found, expected[round], "layer {layer} in round {round}");
                rounds[round] += 1;
            }
            v1::task_spec::Kind::Capture(task) => {
                let expected = [&[][..], &[0.5; 4], &wide];
                assert_eq!(widths(&task.blocks), expected[task.round as usize]);
            }
            v1::task_spec::Kind::Evaluate(evaluate) => {
                let expected: Vec<Vec<f64>> = vec![vec![0.5; 4], wide.to_vec()];
                assert_eq!(evaluate.rounds.iter().map(|of| widths(&of.blocks)).collect::<Vec<_>>(), expected);
                let layers = plan_in(&task).layers;
                assert_eq!(layers.iter().map(|layer| layer.inter_ratio).collect::<Vec<_>>(), wide);
            }
            v1::task_spec::Kind::Synthesise(_) | v1::task_spec::Kind::Finetune(_) => panic!("nothing of that"),
        }
    }
    assert_eq!(rounds, [4, 3, 3]);
    // What assembly is given: plan and blocks agree.
    let student = |c: &Coordinator| c.state.plan_of_student(c.state.job(&job).expect("known"));
    let came_out = student(&c);
    let blocks: Vec<v1::LayerPlan> = c.state.blocks(&job, 2).into_iter().map(|(layer, _)| layer).collect();
    assert_eq!((&blocks, &blocks[1]), (&came_out.layers, &plan::widened(&planned.layers[1])));
    c.crash();
    assert_eq!(student(&c), came_out);
}

#[test]
fn a_block_that_was_not_learned_when_wider_stays_as_narrow_as_it_was() {
    let (c, job, _) = worked(plan_of(&[16, 16]), widening(0.01), |task, output| {
        output.alone_error = task.alone.then_some(0.02);
        if task.round > 0 {
            *output = v1::DistillOutput { unlearned: "it diverged".into(), ..v1::DistillOutput::default() };
        }
    });
    let came_out = c.state.plan_of_student(c.state.job(&job).expect("known"));
    assert_eq!(came_out.layers, plan_of(&[16, 16]).layers);
    assert!(c.state.blocks(&job, 2).iter().map(|(layer, _)| layer).eq(&came_out.layers));
}

#[test]
fn of_costly_layers_so_many_are_widened_as_half_of_the_arithmetic_allows() {
    let errors = [1.0, 0.03, 0.02, 0.04];
    let (c, job, _) = worked(plan_of(&[16, 16, 16, 32]), widening(0.0), |task, output| {
        output.alone_error = task.alone.then_some(errors[index(task)]);
    });
    // Of seven parts the last takes four: more than half, and more than it gains.
    let came_out = c.state.plan_of_student(c.state.job(&job).expect("known"));
    let widths: Vec<f64> = came_out.layers.iter().map(|layer| layer.inter_ratio).collect();
    assert_eq!(widths, [0.5, 1.0, 1.0, 0.5]);
}
