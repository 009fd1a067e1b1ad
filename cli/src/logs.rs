//! Logs of the long-running processes, and their traces.

use std::io;

use clap::ValueEnum;
use deltaconv_worker::AttemptLogs;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::error::Error;
#[cfg(feature = "otlp")]
use crate::location;

/// How a process writes its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// For programs: an object a line
    Json,
}

/// What a long-running process says of its work.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Logging {
    /// How the log is written to stderr; RUST_LOG says how much of it
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, env = "DELTACONV_LOG_FORMAT")]
    log_format: LogFormat,
    /// Collector that traces are sent to, by OTLP over gRPC [default: none]
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<url::Url>,
    /// Certificates in PEM of who signs the collector's [default: the system's]
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "FILE", env = "OTEL_EXPORTER_OTLP_CERTIFICATE")]
    otlp_authority: Option<std::path::PathBuf>,
    /// Send them without encryption, though the collector is another machine
    #[cfg(feature = "otlp")]
    #[arg(long)]
    otlp_plaintext: bool,
}

/// Sends what is left of the traces when it is dropped.
#[must_use]
pub(crate) struct Started {
    #[cfg(feature = "otlp")]
    traces: Option<otlp::Provider>,
}

impl Logging {
    /// Sends `tracing` events to stderr: from `info` up, or what RUST_LOG says; in colour on a terminal only. What is said of
    /// attempts goes to their logs, too. To be called within a tokio runtime.
    ///
    /// # Errors
    /// A collector whose URL is none, or that others would read the traces of; its authority's file.
    pub(crate) fn start(&self) -> Result<Started, Error> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let written = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(crate::output::colours());
        let written = match self.log_format {
            LogFormat::Text => written.with_filter(filter).boxed(),
            LogFormat::Json => written.json().flatten_event(true).with_filter(filter).boxed(),
        };
        let of_attempts = AttemptLogs.with_filter(ours()).boxed();
        let layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![written, of_attempts];
        #[cfg(feature = "otlp")]
        let (layers, traces) = match &self.otlp {
            Some(url) => {
                let url = location::encrypted(url.clone(), "--otlp", "--otlp-plaintext", self.otlp_plaintext)?;
                let (layer, provider) = otlp::layer(&url, self.otlp_authority.as_deref())?;
                (layers.into_iter().chain([layer.with_filter(ours()).boxed()]).collect::<Vec<_>>(), Some(provider))
            }
            None => (layers, None),
        };
        tracing_subscriber::registry().with(layers).init();
        Ok(Started {
            #[cfg(feature = "otlp")]
            traces,
        })
    }
}

/// What deltaconv itself says, in more detail than is written to stderr.
fn ours() -> Targets {
    let ours = ["deltaconv_worker", "deltaconv_kernels", "deltaconv_proto", "deltaconv_coordinator"];
    Targets::new().with_targets(ours.map(|ours| (ours, LevelFilter::DEBUG)))
}

impl Drop for Started {
    fn drop(&mut self) {
        #[cfg(feature = "otlp")]
        if let Some(traces) = self.traces.take() {
            otlp::end(&traces);
        }
    }
}

#[cfg(feature = "otlp")]
mod otlp {
    use std::path::Path;

    use deltaconv_proto::tls::Bundle;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
    use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::{Layer, Registry};
    use url::Url;

    use crate::error::Error;
    use crate::{host, output};

    pub(super) type Provider = SdkTracerProvider;

    /// What sends spans to the collector at `url`, with their fields as attributes. Of an https:// one its certificate is looked at.
    pub(super) fn layer(
        url: &Url,
        authority: Option<&Path>,
    ) -> Result<(impl Layer<Registry> + Send + Sync, Provider), Error> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(url.as_str());
        let exporter = match url.scheme() {
            "https" => exporter.with_tls_config(trusting(url, authority)?),
            _ => exporter,
        };
        let exporter =
            exporter.build().map_err(|error| Error::Otlp { url: url.to_string(), reason: error.to_string() })?;
        let resource = Resource::builder()
            .with_service_name("deltaconv")
            .with_attribute(opentelemetry::KeyValue::new("host.name", host::name()));
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        Ok((tracing_opentelemetry::layer().with_tracer(provider.tracer("deltaconv")), provider))
    }

    fn trusting(url: &Url, authority: Option<&Path>) -> Result<ClientTlsConfig, Error> {
        let trusting = ClientTlsConfig::new();
        match authority {
            Some(path) => {
                let pem = std::fs::read(path).map_err(Error::file("read", path))?;
                // One without any would trust nobody, which is said of each connection alone.
                let reason = |reason| format!("{} {reason}", path.display());
                Bundle::parse(&pem).map_err(|wrong| Error::Otlp { url: url.to_string(), reason: reason(wrong) })?;
                Ok(trusting.ca_certificate(Certificate::from_pem(pem)))
            }
            None => Ok(trusting.with_native_roots()),
        }
    }

    pub(super) fn end(provider: &Provider) {
        if let Err(error) = provider.shutdown() {
            output::say(&format!("the last traces could not be sent: {error}"));
        }
    }
}
