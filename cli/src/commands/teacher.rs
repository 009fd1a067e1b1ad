//! `deltaconv teacher`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1::ObjectRef;
use toml::Value;

use crate::error::{Error, explain};
use crate::shipped::Teacher;
use crate::{location, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The model to write
    #[arg(value_enum, value_name = "NAME")]
    teacher: Teacher,
    /// Folder that becomes the teacher, by path or URL
    #[arg(long, value_name = "DIR")]
    out: String,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { teacher, out } = arguments;
    let url = location::url(&out, Path::new(""))?;
    write(teacher, &url).await?;
    let bytes = teacher.files().iter().map(|(_, content)| content.len() as u64).sum();
    output::say(&format!("{} lies at {url}, {}; a job that converts it:", teacher.name(), table::bytes(bytes)));
    output::print(&job(teacher, &url));
    Ok(ExitCode::SUCCESS)
}

/// Has `url` hold the teacher and nothing else. What is there already stays as it is, so that the command can be given again.
async fn write(teacher: Teacher, url: &str) -> Result<(), Error> {
    let failed = |error: objects::Error| Error::Model { message: explain(&error), code: error.code() };
    let other = |found: &str| Error::OtherModel { url: url.to_owned(), found: found.to_owned() };
    let parsed = objects::parse_url(url).map_err(failed)?;
    // The job's output would have no place beside it.
    if parsed.path().trim_matches('/').is_empty() {
        return Err(Error::NoFolder { url: url.to_owned() });
    }
    let objects = Objects::open(url).map_err(failed)?;
    let files = teacher.files();
    // Of one more than the teacher has, one is something else.
    let found = objects.list(files.len() + 1).await.map_err(failed)?;
    if let Some(found) = found.iter().find(|key| files.iter().all(|(path, _)| *path != key.as_str())) {
        return Err(other(found));
    }
    for (path, content) in files {
        // A store may refuse an object that it has while its bytes are still on their way, and break off the connection.
        let is_there = found.iter().any(|key| key == path);
        match if is_there { Ok(()) } else { objects.create(path, *content).await } {
            Ok(()) if !is_there => {}
            Ok(()) | Err(objects::Error::AlreadyExists { .. }) => {
                match objects.get_verified(&ObjectRef::of(*path, content)).await {
                    Err(objects::Error::Broken { .. }) => return Err(other(path)),
                    verified => drop(verified.map_err(failed)?),
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// A job file that converts it in about the demo's time.
fn job(teacher: Teacher, url: &str) -> String {
    let text = |text: &str| Value::String(text.to_owned());
    format!(
        "name = {}\nteacher = {}\noutput = {}\n\n[recipe]\npreset = \"fast\"\n",
        text(teacher.name()),
        text(url),
        text(&format!("{url}-converted"))
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::job_file;

    #[tokio::test]
    async fn it_can_be_written_again_and_its_job_converts_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = location::folder_url(&folder.path().join("new 'teachers'/tiny")).expect("a URL");
        for _ in 0..2 {
            write(Teacher::TinyUnet, &url).await.expect("written");
        }
        let file = folder.path().join("job.toml");
        fs::write(&file, job(Teacher::TinyUnet, &url)).expect("written");
        let spec = job_file::read(&file).expect("a job");
        assert_eq!((spec.name.as_str(), spec.teacher_url.as_str()), ("tiny-unet", url.as_str()));
        assert_eq!(spec.data.expect("data").url, url);
        let objects = Objects::open(&spec.teacher_url).expect("opens");
        for (path, content) in Teacher::TinyUnet.files() {
            objects.get_verified(&ObjectRef::of(*path, content)).await.expect("whole");
        }
    }

    #[tokio::test]
    async fn what_is_not_the_teacher_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = location::folder_url(folder.path()).expect("a URL");
        let thesis = folder.path().join("drafts/thesis.txt");
        fs::create_dir(folder.path().join("drafts"))
            .and_then(|()| fs::write(&thesis, "years of work"))
            .expect("written");
        let refused = write(Teacher::TinyPixart, &url).await;
        assert!(
            matches!(&refused, Err(Error::OtherModel { found, .. }) if found == "drafts/thesis.txt"),
            "{refused:?}"
        );
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);

        fs::remove_file(&thesis).expect("removed");
        write(Teacher::TinyPixart, &url).await.expect("written");
        let config = folder.path().join("transformer/config.json");
        fs::write(&config, "{}").expect("changed");
        let refused = write(Teacher::TinyPixart, &url).await;
        assert!(
            matches!(&refused, Err(Error::OtherModel { found, .. }) if found == "transformer/config.json"),
            "{refused:?}"
        );
        assert_eq!(fs::read(&config).expect("read"), b"{}");
    }

    #[tokio::test]
    async fn a_store_is_not_filled_with_it() {
        for url in ["s3://bucket", "file:///"] {
            let refused = write(Teacher::TinyUnet, url).await;
            assert!(matches!(refused, Err(Error::NoFolder { .. })), "{refused:?}");
        }
    }
}
