//! Removal from a real folder, decided by a real core.

use std::collections::BTreeSet;

use deltaconv_proto::v1;

use super::*;
use crate::running::Running;

impl Running {
    async fn reclaim(&self, dry_run: bool) -> v1::CollectGarbageResponse {
        reclaim(&self.core, &self.job, Extent::AndLogs, dry_run).await.expect("reclaims").message()
    }
}

/// Objects by kind, in the order in which they are told.
fn objects(response: &v1::CollectGarbageResponse) -> Vec<u64> {
    assert!(response.removed.iter().all(|garbage| garbage.bytes == 3 * garbage.objects), "{response:?}");
    response.removed.iter().map(|garbage| garbage.objects).collect()
}

/// Files that are kept whatever happens.
const KEPT: [&str; 9] = [
    "output/unet/diffusion_pytorch_model.safetensors",
    "output/notes#1",
    "report/report.json",
    "thesis.tex",
    "thesis.tex#2",
    "rounds/0/activations/mid/copy of a shard.safetensors",
    "rounds/0/activations/mid/00000000-00000032-a1-2-test.safetensors.bak",
    "checkpoints/mine/a1-2-test-00000001.safetensors",
    "sub/rounds/0/activations/mid/00000000-00000032-a1-2-test.safetensors",
];
/// Of attempts that no record knows.
const ORPHANED: [&str; 6] = [
    "rounds/0/activations/mid/00000000-00000032-a7-99-test.safetensors",
    "rounds/0/latents/00000000-00000016-a1-3-elsewhere.safetensors",
    "rounds/0/blocks/mid/a1-98-test.safetensors",
    "checkpoints/r0/distill/mid/a1-98-test-00000020.safetensors",
    "evaluate/noise/00000000-00000032/a1-97-test.safetensors",
    "logs/r0/capture/00000000-00000099/a1-97-test.jsonl",
];
/// Of an attempt that came to nothing, at a task that there is.
const LOG: &str = "logs/r0/capture/00000000-00000032/a1-98-test.jsonl";
const INTERRUPTED_ORPHAN: &str = "rounds/0/blocks/mid/a1-98-test.safetensors#1";
const INTERRUPTED_OUTPUT: &str = "output/unet/diffusion_pytorch_model.safetensors#3";

fn set<'a>(keys: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    keys.into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn while_a_job_runs_only_orphans_go() {
    let running = Running::new().await;
    let accepted = running.capture(running.sync(Vec::new()).await.expect("a start")).await;
    let at_work = running.sync(Vec::new()).await.expect("a start").lease.expect("a lease").attempt_id;
    let at_work = format!("rounds/0/activations/mid/00000032-00000064-{at_work}.safetensors");
    let uploading = format!("{at_work}#1");
    running.write(&KEPT);
    running.write(&ORPHANED);
    running.write(&[&at_work, &uploading, LOG, INTERRUPTED_ORPHAN, INTERRUPTED_OUTPUT]);
    let before = running.files();

    let planned = running.reclaim(true).await;
    assert_eq!(running.files(), before, "a dry run removed something");
    let removed = running.reclaim(false).await;
    assert_eq!(removed, planned);
    assert_eq!((objects(&removed), removed.running, removed.failed_objects), (vec![0, 0, 0, 0, 6, 1], true, 0));
    assert_eq!(removed.unknown_objects, 7, "{:?}", running.files());
    let stay = [accepted.as_str(), &at_work, &uploading, LOG, INTERRUPTED_OUTPUT];
    assert_eq!(running.files(), set(KEPT.into_iter().chain(stay)));
    assert_eq!(objects(&running.reclaim(false).await), [0; 6]);
}

#[tokio::test]
async fn of_a_job_that_is_over_everything_goes_but_results_and_what_is_not_its_own() {
    let running = Running::new().await;
    running.capture(running.sync(Vec::new()).await.expect("a start")).await;
    running.write(&KEPT);
    running.write(&ORPHANED);
    running.write(&[LOG, INTERRUPTED_ORPHAN, INTERRUPTED_OUTPUT]);
    running.cancel().await;

    let unneeded = reclaim(&running.core, &running.job, Extent::Unneeded, true).await.expect("looks").message();
    assert_eq!(objects(&unneeded), [1, 0, 0, 0, 6, 2], "logs stay until they are asked for");
    let removed = running.reclaim(false).await;
    assert_eq!((objects(&removed), removed.running), (vec![1, 0, 0, 1, 6, 2], false));
    assert_eq!(running.files(), set(KEPT));
    let left = |folder: &str| running.fixture.path("job").join(folder).exists();
    assert!(!left("rounds/0/blocks") && !left("evaluate") && left("rounds/0/activations/mid"));
    assert_eq!(objects(&running.reclaim(false).await), [0; 6], "it is safe to repeat");
}

#[tokio::test]
async fn what_became_somebody_elses_is_not_touched() {
    let running = Running::new().await;
    running.write(&ORPHANED);
    running.cancel().await;
    let spec = running.fixture.path("job/spec.json");
    let text = std::fs::read_to_string(&spec).expect("reads");
    std::fs::write(&spec, text.replace("\"seed\": 7", "\"seed\": 8")).expect("writes");
    let refused = reclaim(&running.core, &running.job, Extent::AndLogs, false).await.expect_err("refused").to_string();
    assert!(refused.contains("nothing is removed") && refused.contains("data.seed is 8 there"), "{refused}");
    assert_eq!(running.files(), set(ORPHANED));
    std::fs::write(&spec, text).expect("writes");

    let unknown = JobId::new("nonesuch-7").expect("an id");
    assert!(matches!(reclaim(&running.core, &unknown, Extent::AndLogs, false).await, Err(Error::Job(_))));
}
