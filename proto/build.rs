//! Compiles the .proto files with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let services = ["deltaconv/v1/operator.proto", "deltaconv/v1/state.proto"];
    let files = protox::compile(services, ["proto"])?;
    let mut config = tonic_prost_build::configure();
    // A spec without these is written as it was before there were any.
    let added = [
        "Images.buckets",
        "Synthesis.buckets",
        "JobSpec.max_storage",
        "JobSpec.retention",
        "Recipe.store",
        "Recipe.schedule",
        "Recipe.keep_costliest",
        "Recipe.finetune",
        "Recipe.budget",
        "Recipe.widen",
    ];
    for field in added {
        let attribute = "#[serde(skip_serializing_if = \"Option::is_none\")]";
        config = config.field_attribute(format!(".deltaconv.v1.{field}"), attribute);
    }
    // They hold what must not come into a log.
    let secret = ["Invitation", "EnrolRequest", "EnrolResponse", "InviteResponse"];
    config
        .skip_debug(secret.map(|message| format!(".deltaconv.v1.{message}")))
        .codec_path("crate::codec::SmallBuffers")
        .btree_map(".")
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .type_attribute(".", "#[cfg_attr(feature = \"schema\", derive(schemars::JsonSchema))]")
        .message_attribute(".", "#[serde(default, deny_unknown_fields)]")
        .compile_fds(files)?;
    Ok(())
}
