//! Every code, with its cause and its remedy.
//!
//! Append only. Scripts, logs and searches know errors by their numbers: one that was ever released keeps its meaning, and the
//! number of one that is gone is not given again. The compiler refuses a number or a name that is there twice.

use super::Entry;

macro_rules! codes {
    ($($group:literal { $($number:literal $name:ident: $title:literal, $cause:literal, $remedy:literal;)+ })+) => {
        /// Names one cause of errors that has a remedy of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        #[allow(clippy::zero_prefixed_literal, reason = "a code is written with four digits")]
        pub enum Code {
            $($(#[doc = $title] $name = $number,)+)+
        }

        impl Code {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            /// What is known of it.
            pub const fn entry(self) -> &'static Entry {
                match self {
                    $($(Self::$name => &Entry {
                        code: Self::$name,
                        text: concat!("DC", stringify!($number)),
                        group: $group,
                        title: $title,
                        cause: $cause,
                        remedy: $remedy,
                    },)+)+
                }
            }
        }
    };
}

codes! {
    "Command line, connection, files" {
        0001 NotStarted: "The process cannot start what it needs",
            "The system refused threads, signals or random numbers: a limit on processes is reached, or a container \
             forbids the call.",
            "Look at `ulimit -u` and the container's limits, or start with fewer threads, as by `deltaconv worker \
             --threads N`.";
        0002 CoordinatorUrl: "The coordinator's URL is not one",
            "--coordinator or DELTACONV_COORDINATOR holds something else than https://HOST:PORT or http://HOST:PORT.",
            "Write https://HOST:PORT, or http://HOST:PORT of one without TLS, as `deltaconv coordinator` logs it when it \
             starts.";
        0003 Unreachable: "No coordinator answers",
            "Nothing listens at this URL, the network does not get there, or the coordinator is just starting or \
             stopping.",
            "Start one with `deltaconv coordinator --state DIR`, or name the right one with --coordinator URL; `curl \
             URL/healthz` says whether it lives.";
        0004 VersionsDiffer: "Two processes do not understand each other",
            "A message or a file lacks a part that this version needs, or has one that it does not know: \
             coordinator, worker and command line are not of the same version.",
            "Compare `deltaconv --version` on all machines, and put the same release everywhere, the coordinator's first.";
        0005 File: "A file cannot be read or written",
            "The file is not there, the user may not touch it, or the disk is full. The message ends with what the \
             system said.",
            "Check the path, its owner and `df`, and run the command again.";
        0006 Path: "A path cannot be written as a URL",
            "Locations are passed on as URLs, and this path is not UTF-8.",
            "Rename the folder, or give a URL such as file:///folder.";
        0007 UnknownCode: "There is no such code",
            "A code is DC and four digits, and this is none of them; a code of a later version is not known here, \
             either.",
            "List all codes with `deltaconv explain-error`.";
        0008 Refused: "The coordinator refused, and gave no code",
            "The coordinator is of a version without codes or with more of them, or something between here and there \
             answered.",
            "Do as its message says. Compare `deltaconv --version` on both sides.";
        0009 Fault: "A fault in deltaconv",
            "The program came to a state that it should never be in. What was durable stays so, and an attempt that \
             met a fault is made again.",
            "Run it again. If it stays, report it as a bug with the whole message and the log.";
        0010 Interrupted: "Work was broken off while the process ended",
            "The process was asked to end, or its threads were taken down, before this was done.",
            "Start it again: jobs go on from what is durable.";
        0011 Name: "An id or a name is not valid",
            "Jobs, tasks and workers are named with letters, digits, '.', '_', '-' and '/', and parts of a name are \
             not empty.",
            "Copy ids as `deltaconv jobs`, `deltaconv status JOB` and `deltaconv workers` list them; in a job file, \
             choose another `name`.";
        0012 OtherDemo: "The demo's folder holds something else",
            "The folder has other files in it, or a demo that was begun with other settings, and neither is touched.",
            "Name another folder with `deltaconv demo --out DIR`, or move away what is there.";
        0013 DemoRunning: "A demo is running there already",
            "Another `deltaconv demo` holds this folder.",
            "Wait for it, end it with Ctrl-C there, or name another folder with --out.";
        0014 DemoOutcome: "What a finished demo made is gone",
            "The folder says that the demo is done, and a file that it ends with is not there any more.",
            "Remove the demo's folder, and run `deltaconv demo` again.";
        0015 DemoProcess: "A process of the demo does not keep running",
            "The coordinator or a worker that the demo started ended again and again, did not begin to listen, or \
             got out of sight.",
            "Read its log in the demo's folder logs/: its last lines have the cause with a code of its own. The same \
             command goes on where this one stopped.";
        0016 TemporaryFolder: "The temporary folder has no room",
            "Weights from a store that is no folder are copied to a temporary file before they are mapped, and it \
             could not be written.",
            "Make room there, or name another folder with the environment's TMPDIR when the worker starts.";
        0017 StateNotNamed: "No folder is named for the state",
            "A coordinator keeps what it must not forget in a folder, and none was given.",
            "Start it with `deltaconv coordinator --state DIR`.";
        0018 Unconfirmed: "It cannot be undone, and nobody said that it is meant",
            "The command asks on a terminal before it does what can't be undone, and there is none.",
            "Run the command again with `--yes`.";
        0019 Declined: "It was not done, as was answered",
            "The question whether it is meant was not answered with yes.",
            "Run the command again and answer `y`, or say `--yes`.";
        0020 Settings: "A file of settings cannot be used",
            "It is not TOML, or says something that no command has a setting for, or that the setting cannot be. The message \
             names it.",
            "Correct the file; `deltaconv config show` lists all settings, and docs/reference/config.md explains them.";
        0021 NoTerminal: "There is no terminal to draw on",
            "The command draws on the whole terminal, and what it writes goes elsewhere.",
            "Run it in a terminal, or take `deltaconv watch JOB` or `deltaconv jobs --watch`, which write lines.";
        0022 ProtocolsDiffer: "The versions are too far apart",
            "A worker or a command works with a coordinator whose protocol is at most one minor version older or newer, \
             and this one's is farther away. Nothing was done.",
            "Install the release that the message names; docs/upgrading.md says in which order. `deltaconv workers -o \
             wide` lists the workers' releases.";
    }
    "Job files and planning" {
        0101 JobFile: "The file is no job",
            "The file is not TOML, lacks `teacher` or `output`, or has a key or value that no job has. The message \
             names the line.",
            "Correct it there, and see what it comes to with `deltaconv submit --dry-run JOB.toml`.";
        0102 JobValue: "A setting of the job has a value that it cannot have",
            "A number is out of range, or settings contradict each other or the teacher. The message names the \
             setting as the job file does.",
            "Set it as the message says, and check with `deltaconv submit --dry-run JOB.toml`.";
        0103 Storage: "The job would store more than it may",
            "What the job would write below its output is more than its max_storage.",
            "Raise `max_storage`, or make the job smaller: fewer `recipe.samples`, `recipe.store` for inputs alone, \
             `recipe.keep` for layers that stay.";
        0104 OutputTaken: "The output holds something else",
            "There are objects at the job's output that are not this job's, and nothing is written among them.",
            "Choose another `output` in the job file, or empty that folder if nobody needs what is in it.";
        0105 OutputInUse: "Another job writes to this output",
            "Two jobs of this coordinator cannot share an output.",
            "Give this job another `output`, wait for the other one with `deltaconv watch JOB`, or end it with \
             `deltaconv cancel JOB`.";
        0106 InputsChanged: "The teacher or the data changed since the job was planned",
            "A job is planned with the digests of its inputs, and what lies there now has others. A model of mixed \
             inputs would be wrong.",
            "Put the former files back and run `deltaconv retry JOB`, or submit a new job with another output.";
    }
    "Stores and objects" {
        0201 StoreUrl: "The URL names no store",
            "It is no URL, or its scheme is none of file://, s3://, gs://, az://, and to read https:// and hf://.",
            "Write file:///folder for a folder that all machines see, or one of those schemes.";
        0202 NotBuilt: "This build has no such store",
            "The program was built without the cargo feature for this kind of URL.",
            "Build it with the feature that the message names, as in `cargo build --release --features hub`.";
        0203 StoreSettings: "The store cannot be used as it is set up",
            "The URL, the environment's variables or a profile for this store are incomplete, misspelt or contradict \
             each other.",
            "Correct the variable or the file that the message names; docs/cluster.md lists, under Stores, what each \
             store takes.";
        0204 HubRepository: "The URL names no state of a hub's repository",
            "A branch can move while workers read, so that a repository is named by a commit.",
            "Write hf://owner/name@commit with the 40 digits that `git ls-remote https://huggingface.co/owner/name \
             HEAD` shows.";
        0205 AccessRefused: "The store does not let us in",
            "The credentials are missing, have expired, or do not allow this; some stores say so of objects that do \
             not exist, too.",
            "Give credentials that may read, write, list and remove there, to the coordinator and to every worker. \
             For the hub: a token in HF_TOKEN, and the licence accepted.";
        0206 SecretInUrl: "A URL carries credentials",
            "URLs end up in logs, states and reports, and so must hold no secret.",
            "Remove the user, the password or the query from the URL, and give credentials by the environment.";
        0207 ObjectKey: "An object's key cannot be one",
            "A file names another one by a path that leads out of its folder, is empty or too long.",
            "Look at the file that names it, such as a model's index of weights, and get it anew from where it came \
             from.";
        0208 NotFound: "An object is not there",
            "It was never written, was removed, or the URL leads to another folder; a folder that one machine sees \
             may not be there on another.",
            "Check the URL in the job file, and that every machine sees the same store. Where it was removed, put it \
             back and run `deltaconv retry JOB`.";
        0209 AlreadyExists: "An object is there that must not be",
            "Another process wrote it in the meantime.",
            "Run the command again; if it stays, look for a second coordinator on the same output.";
        0210 TooLarge: "An object is larger than it can be",
            "What lies there is not what the name says, and is not read into memory.",
            "Check that the URL leads to the right folder, and that the file is what it should be.";
        0211 Broken: "An object is not what was written",
            "Its digest is another: a disk, a cache or a proxy altered it, or somebody replaced it.",
            "Shards are captured again by themselves. Put anything else back from a copy and run `deltaconv retry \
             JOB`; if it recurs, check the disks and what lies between.";
        0212 StoreFailed: "The store failed",
            "Requests were repeated and went on failing: the store is away, throttles, is full, or the network does \
             not get there.",
            "Try the same URL from that machine with the store's own tool, put right what it says, and run \
             `deltaconv retry JOB` where a job has failed.";
        0213 NotRemoved: "Some objects could not be removed",
            "The store refused to remove them, often for want of permission or by a retention rule.",
            "Allow it there, and run `deltaconv gc JOB` again: it goes on with what is left.";
        0214 ObjectChanged: "An object changed while it was in use",
            "Fewer bytes came than were there before, or a written object has another size: somebody writes there, \
             too, or the store lost some.",
            "Find out who else writes there, and run `deltaconv retry JOB`.";
        0215 UnexpectedFile: "A file holds something else than expected",
            "It can be read, and a tensor or a field of it is missing, of another kind, or out of range. The message \
             names both.",
            "Put the file right, or get it anew from where it came from; then `deltaconv retry JOB`.";
    }
    "Models" {
        0301 ModelFile: "A file of the model is not there",
            "The folder lacks a file that models in diffusers layout have: it is another folder, or was downloaded \
             in part.",
            "Give the folder that has unet or transformer in it, and check it with `deltaconv inspect MODEL`.";
        0302 WeightsMissing: "The model has no weights in safetensors",
            "A part of the model has neither a .safetensors file nor an index of several.",
            "Download the model whole, or save it with `save_pretrained(FOLDER, safe_serialization=True)`.";
        0303 Pickle: "The model's weights are a pickle",
            "A pickle can run any code when it is loaded, and so is never read.",
            "Convert it where you trust it: in Python `DiffusionPipeline.from_pretrained(MODEL, \
             use_safetensors=False).save_pretrained(FOLDER, safe_serialization=True)`, and give that folder.";
        0304 WeightsDamaged: "A file of weights is damaged",
            "A safetensors file or its index is cut off, has bytes too many, or contradicts itself.",
            "Compare its size and digest with the source's, and download or save it again.";
        0305 ConfigDamaged: "A configuration cannot be read",
            "config.json or scheduler_config.json is no JSON object, or a field of it has a value that no model has.",
            "Get the file anew from where the model came from; if it was edited, undo that.";
        0306 ModelClass: "The model is of a class that is not supported",
            "_class_name names a denoiser, scheduler, text encoder or autoencoder that this version does not know.",
            "Take a model of one of the classes that the message lists.";
        0307 ConfigField: "The configuration has an unknown field",
            "Nobody knows what the field would change, and a guess would make a wrong model.",
            "Remove it from a copy of the model if it does not change what the model computes; else the model is not \
             supported.";
        0308 ConfigUnsupported: "The configuration asks for what is not supported",
            "A field has a value that diffusers knows and this version does not implement.",
            "Take a model with one of the values that the message lists.";
        0309 LatentSize: "Pictures of this size do not go through the model",
            "Every stage of the model halves the map, and one of them cannot take what it is left with; or the \
             configuration says no size.",
            "Choose a height and width that are multiples of what the message says, as by --size, --latent or \
             `data.synthesis.size`.";
        0310 WeightsUnlikeConfig: "Weights and configuration are not of one model",
            "A tensor is missing, or has another shape than the configuration makes it.",
            "Get config.json and the weights from the same download; `deltaconv inspect MODEL` checks them.";
        0311 WeightsDtype: "The weights are not of floats",
            "The model was quantised: its numbers are not F16, BF16, F32 or F64.",
            "Take the model before it was quantised.";
        0312 NoLayers: "The model has nothing to convert",
            "None of its layers is self-attention.",
            "Name a teacher with attention; `deltaconv inspect MODEL` lists its layers.";
        0313 NoVae: "Nothing turns the model's latents into pictures",
            "The model computes in latents, and its folder has no vae/config.json.",
            "Copy the vae folder of the model's pipeline beside its denoiser.";
        0314 PartsUnfit: "Parts of the model do not fit each other",
            "Its text encoders, autoencoder, scheduler and denoiser disagree about sizes or kinds: they are of \
             several models.",
            "Take all folders from one download of the pipeline.";
        0315 Description: "The converted model's description cannot be read",
            "deltaconv.json is damaged, of another version, or the folder is no output of deltaconv.",
            "Give the `output` of a job that is done, and read it with the version that wrote it.";
        0316 TooManyFiles: "The teacher's folder holds more than a model",
            "Assembly copies what lies beside the denoiser, and there are far more files than models have.",
            "Put the model into a folder of its own, and name that as `teacher`.";
        0317 OtherModel: "The folder holds something else than the shipped teacher",
            "`deltaconv teacher` writes over nothing: a file is there that the teacher has not, or has with another \
             content.",
            "Name an empty or new folder with `deltaconv teacher NAME --out DIR`.";
    }
    "Data, prompts, images" {
        0401 DataMissing: "There are no data to work with",
            "The folder lacks latents.safetensors, prompt_embeddings.safetensors or prompts.json, or there are no \
             latents in it.",
            "Name their folder with `data.url` or --data URL, or have a job make them with `[data.synthesis]`.";
        0402 DataTensor: "A tensor of the data is missing or of another form",
            "latents.safetensors or prompt_embeddings.safetensors were made for another model, or by another script.",
            "Write the tensor with the type and shape that the message gives.";
        0403 PromptsJson: "prompts.json is not as expected",
            "It is no JSON of the form {\"prompts\": [\"…\", \"\"]}, or has another number of prompts than there are \
             embeddings.",
            "Write one prompt for each row of prompt_embeddings.safetensors, the empty one last.";
        0404 PromptId: "A latent names a prompt that is not there",
            "The tensor `prompt` of the latents counts rows of the embeddings, and there are fewer.",
            "Correct the id in latents.safetensors, or add the embedding.";
        0405 PromptFile: "The file of prompts cannot be used",
            "It is no text in UTF-8, or has no or too many prompts.",
            "Write one prompt on each line, and name the file with `data.synthesis.prompts`.";
        0406 Images: "The images cannot be used",
            "The folder has no images with captions, or one of its files is no image, archive or caption as expected.",
            "Repair or remove the file that the message names; if the job was planned already, submit a new one.";
        0407 UnknownPrompt: "The model cannot embed this prompt",
            "The model has no text encoder, and knows only the prompts that embeddings lie beside it for.",
            "Take one of the prompts that the message lists, or copy the model's tokenizer and text_encoder folders \
             there.";
        0408 NothingObserved: "No sample is looked at, and a figure needs one",
            "There are no data for `deltaconv analyze` to compute the teacher on, or --samples is 0.",
            "Name a folder of latents and embeddings with --data URL, ask for --samples N, or leave out --svg and \
             --kernel-sizes.";
    }
    "Shards and recorded activations" {
        0501 ShardUnusable: "A shard of activations cannot be used",
            "What was captured is not what lies there now, or holds what cannot be learned from.",
            "Nothing: it is captured again and the task goes on. If it recurs, check the store, the disks and the \
             cache's folder.";
        0502 ShardForm: "A shard does not have its form",
            "Its tensors are not those that its layer and range have: it was written by another version, or is \
             damaged.",
            "Put the same build on all workers; then `deltaconv retry JOB`.";
        0503 NotFinite: "The model computes numbers that are not finite",
            "A layer or a latent came to infinity or NaN: the weights are damaged, the guidance is too high, or F16 \
             is too narrow for them.",
            "Draw a picture with `deltaconv sample MODEL --prompt TEXT --device cpu`. If that is wrong, too, replace \
             the model; else lower the guidance, or keep the layer with `recipe.keep`.";
        0504 CacheFolder: "The cache's folder cannot be used",
            "The folder for samples does not exist, belongs to another user, or is on a full disk.",
            "Make it and give it to the worker's user, or name another with `deltaconv worker --disk-cache FOLDER`.";
    }
    "Coordinator: start, state, snapshots, ownership" {
        0601 Listen: "The process cannot listen there",
            "Another process uses the port, or the address is none of this machine's.",
            "Choose another --listen ADDRESS, or find with `ss -ltnp` who has the port.";
        0602 Plaintext: "Something would be sent to other machines without encryption",
            "Others on the way can read and change it; whoever reaches a coordinator without TLS may submit and cancel jobs.",
            "Make certificates with `deltaconv certs init --out DIR --host NAME` and start it with --certs DIR. Listen on \
             127.0.0.1 without; or, in a network where nobody else is, add --allow-plaintext, to it and to what calls it. Give \
             webhooks and collectors by https:// URLs.";
        0603 StateInUse: "Another coordinator runs on this state",
            "A state folder belongs to one process at a time, and it is locked.",
            "Stop the other one, or give this one another --state. A backup of one that runs is made by itself: leave \
             --state out, as in `deltaconv coordinator backup --to URL`.";
        0604 StateLost: "The state's database is gone",
            "The folder is a state's, and its database is empty: starting on it would forget every job.",
            "Restore with `deltaconv coordinator restore --state NEW --snapshots URL`, or start anew with another \
             --state.";
        0605 NotState: "The folder is no state",
            "It holds something else, and nothing is written among that.",
            "Give --state an empty or a new folder.";
        0606 LaterVersion: "It was written by a later version",
            "The state, a backup, a snapshot or a manifest has a format that this version does not know. Nothing was \
             changed.",
            "Install the version that wrote it, or a later one. To go back for good, make a new state folder with \
             `deltaconv coordinator restore --state NEW --backup URL` from a backup that the earlier version made.";
        0607 StateRecord: "A record of the state cannot be read",
            "The database is damaged, or was changed by something else.",
            "Stop the coordinator, keep the folder, and make a new one with `deltaconv coordinator restore --state \
             NEW --snapshots URL`.";
        0608 RecordTooLarge: "A record is larger than the state takes",
            "A job or a task has more to it than one record may hold, often by very many layers or prompts.",
            "Make the job smaller, as with `recipe.keep`, and submit it again.";
        0609 StateFull: "Too little disk is left for the state",
            "Less is free where the state lies than is to stay so, and nothing is changed then.",
            "Make room, or lower `deltaconv coordinator --keep-free`. It goes on by itself.";
        0610 StateUnwritable: "The state cannot be read or written",
            "The disk is full or failing, or the folder belongs to another user. A coordinator that runs is \
             read-only meanwhile, and loses nothing.",
            "Make room or mend the disk, as `df`, `dmesg` and the log say; a running coordinator tries again by \
             itself.";
        0611 TokenFile: "The file of the workers' token cannot be used",
            "The file cannot be read or made, or holds no token: at least 16 characters without blanks.",
            "Give the worker the coordinator's file with --token-file (worker.token in its state). A bad one: remove \
             it, and a coordinator makes a new one.";
        0612 Stopping: "The coordinator is stopping",
            "It was asked to end while the call was on its way; nothing was changed.",
            "Call again in a moment, when it has started again.";
        0613 NothingNamed: "Nothing is named to restore from",
            "A state is made from a backup, from snapshots, or from what jobs left in their outputs, and none was given.",
            "Add --backup URL, --snapshots URL, or --job URL with the output of each job.";
        0614 RestoreTaken: "There is a state already",
            "A restored state goes to a folder of its own, so that nothing is written over.",
            "Give `deltaconv coordinator restore` another --state, or move that one away.";
        0615 NothingToRestore: "There is nothing to restore from",
            "No backup, no snapshot or no manifests lie at this URL: it is another folder, none was written yet, or a job \
             of an earlier version has none.",
            "Check --backup against what `deltaconv coordinator backup` printed, --snapshots against what the coordinator \
             was started with, and --job against the `output` in the job file.";
        0616 JobTwice: "Two outputs have a job of one name",
            "They come from two coordinators, and one state cannot hold both.",
            "Restore one of them alone, or each into a --state of its own.";
        0617 ArchiveBroken: "A backup, a snapshot or a manifest is not as it was written",
            "It is cut off, was altered, or is no file of deltaconv's.",
            "Name an earlier one with `--snapshot NAME`, or leave it out and the newest that is whole is taken. Of backups \
             name an earlier one's own folder with `--backup URL`.";
        0618 OutputHeld: "The output belongs to another coordinator",
            "Only one coordinator writes below an output, and another has taken this one.",
            "Where that one is gone or shall stop: `deltaconv submit --take-over JOB.toml` for a new job, `deltaconv \
             retry --take-over JOB` for one that ended so.";
        0619 TermForeign: "What says whose the output is cannot be read",
            "The object of that name was damaged, or is something else's.",
            "Look at it, and remove it if no coordinator works there.";
        0620 TermContended: "Coordinators take an output from each other",
            "Others were faster each time: several are told to take it over.",
            "Stop all but one, and submit or retry there.";
        0621 BackupPlace: "Nothing says where the backup goes",
            "A backup goes to a folder or a bucket, and none was named; a coordinator without --snapshots has no place \
             for it either.",
            "Run `deltaconv coordinator backup --to URL`.";
        0622 NoStateThere: "There is no state to back up",
            "The folder has no IDENTITY, which every state has: it is another folder, or no coordinator has run on it.",
            "Name the --state that the coordinator is started with.";
    }
    "Tasks, leases, jobs, workers" {
        0701 UnknownJob: "There is no such job or task",
            "This coordinator never had one of this id, or works on another state.",
            "List them with `deltaconv jobs`, and check --coordinator.";
        0702 UnknownWorker: "There is no such worker",
            "No worker that is known has this id, name or machine; who was away for long is forgotten.",
            "List them with `deltaconv workers`.";
        0703 JobEnded: "The job has ended already",
            "It is done, failed or cancelled, and what was asked for needs one that runs.",
            "Look at it with `deltaconv status JOB`; one that failed goes on with `deltaconv retry JOB`.";
        0704 NoReport: "The job has no report yet",
            "A report is made once a job is done.",
            "Wait with `deltaconv watch JOB`; `deltaconv explain JOB` says what it waits for.";
        0705 WrongToken: "The token is not the coordinator's",
            "A worker joins with the token of the coordinator, and gave none or another.",
            "Invite the worker with `deltaconv workers invite`. On the coordinator's own machine and without TLS its token \
             file (worker.token in its state) does as well, with --token-file.";
        0706 WorkerRefused: "The coordinator sent the worker away",
            "It refused what the worker said, and would do so again.",
            "Do as its message says; most often one of the two is of another version: compare `deltaconv --version`.";
        0707 Unmeasured: "A measurement could not be made",
            "A process, the network or /proc did not do what `deltaconv bench` needs.",
            "Put right what the message says, and run it again; coordinators are measured on Linux alone.";
    }
    "Devices, kernels, training" {
        0801 NoDevice: "There is no GPU that can be used",
            "No CUDA device is there or visible, or this build has no CUDA.",
            "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, build with `--features cuda`, or compute with `--device \
             cpu`.";
        0802 OldDriver: "The CUDA driver is too old for this build",
            "The kernels were compiled for a newer driver.",
            "Update it to one of CUDA 13.0 (580) or newer, or compute with `--device cpu`.";
        0803 DeviceMemory: "The device has too little memory",
            "What this step needs is more than is free: the batch is large, or others use the device.",
            "See with `nvidia-smi` who uses it. Lower the job's batch or the worker's --gpu-cache, or set \
             `[requires] memory` in the job file so that larger devices get it.";
        0804 DeviceFailed: "The device failed",
            "The driver or a library of CUDA gave up, and what ran on the device is lost. The machine is given \
             nothing more, and its tasks go on elsewhere.",
            "Look for Xid messages in `dmesg`, reset or replace the device, restart the worker, and give the machine \
             tasks again with `deltaconv workers return MACHINE`.";
        0805 BlockShape: "The recipe makes no block",
            "Kernel size, inner width, scales and the layer's map contradict each other.",
            "Correct `recipe.inter_ratio`, `recipe.scales` or the layer's kernel size as the message says; \
             `deltaconv submit --dry-run` shows each layer's.";
        0806 Diverged: "Training diverged for good",
            "The error grew or became infinite again and again, also from earlier checkpoints and at lower rates.",
            "Lower `recipe.learning_rate`, take more `recipe.samples`, or keep the layer as attention with \
             `recipe.keep`, in a new job.";
        0807 NoSolution: "A regression has no single solution",
            "There are fewer samples than unknowns, or they are all alike.",
            "Take more `recipe.samples`, or set `recipe.start` to random and `recipe.solve` to false.";
        0808 TensorOperation: "An operation on tensors failed",
            "Shapes do not fit, or the device ran out of memory. The message says which.",
            "Check the model with `deltaconv inspect MODEL`; for memory, see `deltaconv explain-error DC0803`. Else \
             report it as a bug.";
        0809 Precision: "The device does not compute in this precision",
            "The processor computes in f32 alone.",
            "Leave out --precision, or say f32; for bf16 or f16 take --device cuda.";
        0810 NothingToLearn: "There is too little to learn from",
            "A layer's samples are none, or all of them are 0.",
            "Take more `recipe.samples`, and see with `deltaconv inspect MODEL` whether the layer does anything; \
             `recipe.keep` leaves it out.";
    }
    "Assembly, verification, report, evaluation" {
        0901 Blocks: "The blocks are not those of the plan",
            "A layer has no block or one too many, or the teacher has nothing in its place.",
            "See with `deltaconv status JOB` which layer is missing; `deltaconv retry JOB` makes it again.";
        0902 BlockTensors: "A block's file is not as planned",
            "A tensor of it is missing, of another shape, not finite or one too many: it was altered, or is of \
             another version.",
            "Put the same build on all machines, and submit the job anew with another output.";
        0903 NotAccepted: "A worker's output is not accepted",
            "What it reported and what lies in the store differ, and the task is given to another worker.",
            "If it recurs on one machine, check its version and disks, and `deltaconv workers drain MACHINE`. Else \
             see `deltaconv explain TASK`.";
        0904 EvaluationUnreadable: "The report's parts cannot be read",
            "An object of the evaluation, of a block's training or of the output is missing, damaged or of another \
             version.",
            "Put it back from a copy and run `deltaconv retry JOB`, or submit the job anew with another output.";
        0905 NothingMeasured: "The evaluation has nothing to compare",
            "No sample was measured, so that a figure of the report has no value.",
            "Set `evaluation` in the job file so that there are samples and prompts, and submit the job anew.";
    }
    "Access and encryption" {
        1001 Certificate: "A certificate or a key cannot be used",
            "The file holds none in PEM, the key is not the certificate's, or the authority that signed it is not \
             there. The message names the file.",
            "Look at it with `deltaconv certs show FILE`, or have new ones made with `deltaconv certs init`.";
        1002 Untrusted: "The other side of the connection is not trusted",
            "The coordinator's certificate is of another authority, for another host, or over; or the coordinator \
             does not accept the certificate that it was shown.",
            "Take the credentials or the invitation of this coordinator, call it by a name that its certificate has \
             (`deltaconv certs show coordinator.pem`), and check that both clocks are right.";
        1003 NoCredentials: "Nobody said who is calling",
            "The coordinator speaks TLS and wants to know who calls, and the call came without a certificate.",
            "Name the file with your certificate and key with --credentials FILE or DELTACONV_CREDENTIALS; \
             `deltaconv certs issue operator NAME` makes one.";
        1004 Denied: "This identity may not do that",
            "Viewers look, operators submit and change, workers join and compute; each is refused the rest, and so \
             is a worker that speaks for another.",
            "Take the credentials of somebody who may; `deltaconv certs show FILE` says whose a file is.";
        1005 Invitation: "This is no invitation",
            "An invitation is one line that `deltaconv workers invite` prints, and this is something else or a part \
             of one.",
            "Copy the whole line, or make another with `deltaconv workers invite`.";
        1006 InvitationOver: "The invitation is not accepted any more",
            "It was taken as often as it may be, its time is over, it was revoked, or it is another coordinator's.",
            "Make another with `deltaconv workers invite`; `deltaconv workers invitations` says what became of this \
             one.";
        1007 Revoked: "This identity was revoked",
            "An operator ended it, or a worker's ran out while the worker was away.",
            "Invite the worker again with `deltaconv workers invite`; give a person a certificate of another name \
             with `deltaconv certs issue`.";
        1008 StoreNotAllowed: "The store is not among those that are allowed",
            "A job names a teacher, data or an output outside of what this coordinator or worker was started with.",
            "Put it where it is allowed, or allow the place with --allow-store URL and start the process anew.";
        1009 TooMany: "Too much is asked at once",
            "One peer has more connections, calls or requests at a time than any of them needs.",
            "Ask less often: `deltaconv watch` and `deltaconv events --follow` say when something changes.";
        1010 Identity: "A worker's identity cannot be kept or used",
            "The folder for it cannot be written, or what is there is of another coordinator or damaged.",
            "Name a folder of the worker's own with --identity DIR, or remove the file that the message names and \
             invite the worker again.";
    }
    "Slurm" {
        1101 SlurmMissing: "A command of Slurm cannot be run",
            "sbatch, squeue, scancel, sinfo or scontrol is not on the PATH of this process: it runs on a machine that \
             is none of the cluster's, or without the environment in which users submit jobs.",
            "Run `deltaconv alloc slurm` on a login node, as a user who can submit jobs there, and name the folder of \
             Slurm's commands in its PATH.";
        1102 SlurmFailed: "A command of Slurm failed",
            "Slurm's controller does not answer, or it refuses the job: a partition, an account, a time limit or a \
             resource that does not exist here or is not allowed. The message has Slurm's own words.",
            "Compare the options that `deltaconv alloc slurm` shows with --dry-run with what `sinfo` and the site's \
             pages say; it tries again by itself, after pauses that grow.";
        1103 SlurmRenamed: "Slurm has the jobs under another name",
            "Jobs are found again by their name. A plugin of this site changes it, so that they could be submitted \
             again and again; the ones that were are taken back.",
            "Choose a name that the plugin leaves alone: `deltaconv alloc slurm` with --name.";
    }
}
