//! Blocks that were trained together: one of every layer that the task named, each as the block of one layer is checked, or
//! none.

use std::collections::BTreeSet;

use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::{FinetuneOutput, FinetuneTask};

use super::{Error, Expectation, block};

pub(super) async fn verify(
    objects: &Objects,
    output: &FinetuneOutput,
    task: &FinetuneTask,
    expectation: &Expectation<'_>,
) -> Result<(), Error> {
    for (name, error) in [("before", output.error_before), ("after", output.error_after)] {
        if !error.is_finite() || error < 0.0 {
            let what = format!("{}: error {name} training", expectation.task);
            return Err(Error::Value { what, found: error.to_string(), expected: "a finite number from 0".to_owned() });
        }
    }
    let given: BTreeSet<&str> = task.blocks.iter().map(|block| block.layer.as_str()).collect();
    let found: BTreeSet<&str> = output.blocks.iter().map(|block| block.layer.as_str()).collect();
    if !output.blocks.is_empty() && (found != given || found.len() != output.blocks.len()) {
        let names = |of: &BTreeSet<&str>| of.iter().map(|name| name.chars().take(300).collect()).collect();
        return Err(Error::Layers { expected: names(&given), found: names(&found) });
    }
    for of in &output.blocks {
        let layer = expectation.plan.layers.iter().find(|layer| layer.name == of.layer).ok_or(Error::Task("layer"))?;
        let key = keys::finetuned(&of.layer, expectation.attempt);
        let object = of.object.as_ref().ok_or_else(|| Error::NoObject { expected: key.clone() })?;
        block::verify_tensors(objects, object, &key, layer).await?;
    }
    Ok(())
}
