//! Whose fault it was.

use super::*;

fn nodes<const N: usize>(c: &mut Coordinator) -> [WorkerId; N] {
    std::array::from_fn(|index| c.join_on(&format!("node{index}")))
}

fn of_worker(c: &Coordinator, worker: &WorkerId) -> (String, String) {
    let mut statuses = c.state.worker_statuses(c.now).into_iter();
    let found = statuses.find(|status| status.worker_id == worker.as_str()).expect("known");
    (found.state, found.reason)
}

/// One layer is not learned anywhere; the reasons differ.
#[test]
fn a_task_that_fails_on_three_machines_is_quarantined_and_the_job_goes_on_around_it() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let workers: [WorkerId; 3] = nodes(&mut c);
    let is_bad = |start: &v1::Start| task_of(start).local() == "r0/distill/down";
    let mut tried = Vec::new();
    for _ in 0..6 {
        for (index, worker) in workers.iter().enumerate() {
            c.answer(worker, |start| {
                if !is_bad(start) {
                    return Report::Done(done(start));
                }
                tried.push(index);
                failed(&format!("cause {index}"))
            });
        }
    }
    tried.sort_unstable();
    assert_eq!(tried, [0, 1, 2], "each machine tried it once");
    let bad = TaskId::of(&job, "r0/distill/down").expect("an id");
    assert!(c.state.tasks[&TaskId::of(&job, "r0/distill/mid").expect("an id")].is_committed());
    let JobState::Failed(reason) = c.job_state(&job).clone() else { panic!("{:?}", c.job_state(&job)) };
    for index in 0..3 {
        assert!(reason.contains(&format!("node{index}: cause {index}")), "{reason}");
    }
    // No machine is to blame for it.
    assert!(workers.iter().all(|worker| of_worker(&c, worker).0 == "idle") && c.state.nodes.is_empty());
    c.crash();
    assert!(c.state.tasks[&bad].is_quarantined());
    let explained = c.state.explain(bad.as_str(), c.now).expect("known");
    assert!(explained.remedy.contains("deltaconv retry tiny-1"), "{explained}");

    // Mended, it goes on to the end.
    c.run(|state, now, effects| state.retry(bad.as_str(), now, effects)).expect("retried");
    assert_eq!((c.job_state(&job), c.state.tasks[&bad].failures.len()), (&JobState::Running, 0));
    for _ in 0..10 {
        c.answer(&workers[0], |start| Report::Done(done(start)));
    }
    assert_eq!(c.job_state(&job), &JobState::Done);
}

#[test]
fn a_machine_on_which_different_tasks_fail_is_taken_out_until_it_is_returned() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let [faulty, good] = nodes(&mut c);
    for _ in 0..3 {
        c.answer(&faulty, |_| failed("no memory")).expect("a task");
    }
    let (state, reason) = of_worker(&c, &faulty);
    assert!(state == "out" && reason.contains("no memory"), "{state} {reason}");
    c.crash();
    assert_eq!(c.answer(&faulty, |start| Report::Done(done(start))), None, "it is given nothing");
    // Whoever else joins on that machine isn't, either.
    let again = c.join_on("node0");
    assert_eq!(c.answer(&again, |start| Report::Done(done(start))), None);
    assert!(c.answer(&good, |start| Report::Done(done(start))).is_some());
    c.run(|state, now, effects| state.give_again("node0", now, effects)).expect("returned");
    assert_eq!(of_worker(&c, &faulty), ("idle".to_owned(), String::new()));
    while c.answer(&good, |start| Report::Done(done(start))).is_some() {}
    c.carry_out();
    assert_eq!(c.job_state(&job), &JobState::Done);
}

#[test]
fn a_machine_whose_device_failed_is_taken_out_and_no_task_is_blamed() {
    let mut c = Coordinator::new();
    c.submit();
    let [broken, other] = nodes(&mut c);
    let failure = v1::Failure { message: "Xid 79".into(), of_device: true, ..v1::Failure::default() };
    let task = c.answer(&broken, |_| Report::Failed(failure)).expect("a task");
    assert!(c.state.tasks[&task].failures.is_empty());
    assert_eq!(of_worker(&c, &broken), ("out".to_owned(), "its device failed: Xid 79".to_owned()));
    let explained = |c: &Coordinator| c.state.explain(task.as_str(), c.now).expect("known").to_string();
    assert!(explained(&c).contains("busy"), "{}", explained(&c));
    c.wait(TTL);
    // The other one is gone, too; the broken one still answers.
    c.sync(&broken, Vec::new());
    assert!(explained(&c).contains("deltaconv workers return node0"), "{}", explained(&c));
    assert_eq!(c.answer(&other, |start| Report::Done(done(start))), Some(task));
}

#[test]
fn the_last_machine_is_not_taken_out() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let [alone] = nodes(&mut c);
    for _ in 0..2 {
        c.answer(&alone, |_| failed("a hiccup")).expect("a task");
    }
    while c.answer(&alone, |start| Report::Done(done(start))).is_some() {}
    c.carry_out();
    assert_eq!(c.job_state(&job), &JobState::Done);
}

#[test]
fn workers_that_are_lost_are_counted_apart_and_only_without_a_checkpoint_between() {
    let mut c = Coordinator::new();
    let job = c.submit();
    c.state.settings.max_lost = 3;
    let [worker] = nodes(&mut c);
    let lose = |c: &mut Coordinator, step: u64| {
        c.sync(&worker, Vec::new());
        let start = c.sync(&worker, Vec::new()).start.remove(0);
        let (task, lease) = (task_of(&start), start.lease.clone().expect("a lease"));
        if step > 0 {
            let attempt = AttemptId::new(lease.attempt_id.clone()).expect("an id");
            let object = Some(object(&keys::checkpoint(&task, &attempt, step)));
            let progress =
                v1::Progress { checkpoint: Some(v1::Checkpoint { object, step }), ..v1::Progress::default() };
            c.sync(&worker, vec![report(&start.lease, Report::Running(progress))]);
        }
        c.wait(TTL);
        task
    };
    let task = lose(&mut c, 0);
    lose(&mut c, 0);
    lose(&mut c, 4);
    assert_eq!((c.state.tasks[&task].lost, c.state.tasks[&task].failures.len()), (1, 0));
    lose(&mut c, 0);
    assert!(!c.state.tasks[&task].is_quarantined());
    lose(&mut c, 0);
    assert!(c.state.tasks[&task].is_quarantined() && c.state.tasks[&task].last_failure.contains("3 times"));
    assert_eq!(c.job_state(&job), &JobState::Running, "the other captures go on");
}
