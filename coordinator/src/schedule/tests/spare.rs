//! Attempts that take too long.

use super::*;

fn progress(step: u64) -> Report {
    Report::Running(v1::Progress { step, steps: 100, ..v1::Progress::default() })
}

/// A job of many captures, three of which took 10 s; a fourth one is at work for 15 s and has come to `step` of 100.
fn straggling(step: u64) -> (Coordinator, WorkerId, v1::Start) {
    let mut c = Coordinator::new();
    let recipe = spec().recipe.map(|recipe| v1::Recipe { samples: 6, ..recipe });
    c.submit_spec(v1::JobSpec { recipe, ..spec() });
    let slow = c.join_on("slow");
    for _ in 0..3 {
        c.answer(&slow, |start| Report::Done(v1::Done { busy_seconds: 10.0, ..done(start) }));
    }
    let start = c.sync(&slow, Vec::new()).start.remove(0);
    for at in [0, step / 2, step] {
        c.sync(&slow, vec![report(&start.lease, progress(at))]);
        c.wait(Duration::from_secs(5));
    }
    c.sync(&slow, vec![report(&start.lease, progress(step))]);
    (c, slow, start)
}

/// The task that an idle worker is woken for and given.
fn spare(c: &mut Coordinator, node: &str) -> Option<v1::Start> {
    let idle = c.join_on(node);
    assert_eq!(c.sync(&idle, Vec::new()).start, []);
    c.commands.clear();
    c.wait(Duration::from_secs(2));
    if !c.commands.contains(&Command::Wake(idle.clone())) {
        return None;
    }
    c.sync(&idle, Vec::new()).start.pop()
}

#[test]
fn only_what_will_take_twice_as_long_as_its_peers_gets_a_second_attempt_and_only_one_elsewhere() {
    assert_eq!(spare(&mut straggling(90).0, "fast"), None, "it is nearly done");
    assert_eq!(spare(&mut straggling(50).0, "slow"), None, "the same machine is no better");
    let (mut c, _, start) = straggling(50);
    let second = spare(&mut c, "fast").expect("a second attempt");
    assert_eq!(task_of(&second), task_of(&start));
    assert_ne!(second.lease, start.lease);
    assert_eq!(spare(&mut c, "third"), None, "never more than one");
}

#[test]
fn the_first_of_two_attempts_that_ends_counts_and_the_other_is_told() {
    for spare_wins in [true, false] {
        let (mut c, slow, start) = straggling(50);
        let second = spare(&mut c, "fast").expect("a second attempt");
        let fast = c.state.workers.keys().last().expect("workers").clone();
        c.crash();
        let task = task_of(&start);
        assert_eq!(c.state.tasks[&task].leases().len(), 2, "both stand after a restart");
        let (winner, won, loser, lost) = match spare_wins {
            true => (&fast, &second, &slow, &start),
            false => (&slow, &start, &fast, &second),
        };
        c.sync(winner, vec![report(&won.lease, Report::Done(done(won)))]);
        c.carry_out();
        assert!(c.state.tasks[&task].is_committed());
        let answer = c.sync(loser, vec![report(&lost.lease, Report::Done(done(lost)))]);
        assert_eq!(answer.cancel.len(), 1);
        c.carry_out();
        assert_eq!(c.commits[&task], 1);
    }
}

#[test]
fn what_is_left_of_two_attempts_goes_on() {
    let (mut c, slow, start) = straggling(50);
    let second = spare(&mut c, "fast").expect("a second attempt");
    c.sync(&slow, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    let task = task_of(&start);
    let standing: Vec<String> = c.state.tasks[&task].leases().iter().map(|leased| leased.attempt.to_string()).collect();
    assert_eq!(standing, [second.lease.expect("a lease").attempt_id]);
}

/// A spare attempt finds a shard broken that the first one has read whole.
#[test]
fn while_a_shard_is_written_again_the_first_attempt_is_accepted_and_nobody_is_given_a_second_one() {
    let mut c = Coordinator::new();
    let layer = |index: u32| v1::LayerPlan { index, name: format!("layer{index}"), ..v1::LayerPlan::default() };
    let plan = v1::JobPlan { layers: (0..4).map(layer).collect(), ..job_plan() };
    c.run(|state, now, effects| state.submit(spec(), plan, now, effects)).expect("accepted");
    let slow = c.join_on("slow");
    for _ in 0..6 {
        c.answer(&slow, |start| Report::Done(v1::Done { busy_seconds: 10.0, ..done(start) }));
    }
    let start = c.sync(&slow, Vec::new()).start.remove(0);
    for at in [0, 25, 50] {
        c.sync(&slow, vec![report(&start.lease, progress(at))]);
        c.wait(Duration::from_secs(5));
    }
    c.sync(&slow, vec![report(&start.lease, progress(50))]);
    let second = spare(&mut c, "fast").expect("a second attempt");
    let Some(v1::task_spec::Kind::Distill(read)) = second.task.and_then(|task| task.kind) else { panic!("a training") };
    let key = read.shards[0].object.clone().expect("an object").key;
    let broken_shard = Some(v1::BrokenShard { key, ..v1::BrokenShard::default() });
    let failure = v1::Failure { message: "broken".into(), broken_shard, ..v1::Failure::default() };
    let fast = c.state.workers.keys().last().expect("workers").clone();
    c.sync(&fast, vec![report(&second.lease, Report::Failed(failure))]);
    assert!(task_of(&c.sync(&fast, Vec::new()).start[0]).local().starts_with("r0/capture/"));

    assert_eq!(spare(&mut c, "third"), None);
    let task = task_of(&start);
    assert_eq!(c.state.tasks[&task].leases().len(), 1, "a lease that can't begin is none");
    c.sync(&slow, vec![report(&start.lease, Report::Done(done(&start)))]);
    c.carry_out();
    assert!(c.state.tasks[&task].is_committed(), "there is what to check against");
}

/// The third machine on which a task fails may be one of two that are at it.
#[test]
fn a_task_that_failed_on_three_machines_is_quarantined_once_its_other_attempt_ends_without_an_output() {
    for is_lost in [true, false] {
        let (mut c, slow, start) = straggling(50);
        let second = spare(&mut c, "fast").expect("a second attempt");
        let fast = c.state.workers.keys().last().expect("workers").clone();
        let (task, message) = (task_of(&start), String::from("no memory"));
        let slot = c.state.tasks.slot(&task).expect("known");
        let failed_on = |node: &str| Failed { node: node.into(), message: message.clone() };
        c.state.change(slot, |task| task.failures = vec![failed_on("node1"), failed_on("node2")]);
        c.sync(&slow, vec![report(&start.lease, failed("no memory"))]);
        assert!(!c.state.tasks[&task].is_quarantined(), "the second attempt may do it");
        assert_eq!(spare(&mut c, "node3"), None, "nobody else is asked to");
        match is_lost {
            true => c.wait(TTL),
            false => drop(c.sync(&fast, vec![report(&second.lease, Report::Released(v1::Progress::default()))])),
        }
        assert!(c.state.tasks[&task].is_quarantined());
        c.crash();
        assert!(c.state.tasks[&task].is_quarantined());
    }
}
