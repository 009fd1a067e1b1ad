use std::fs;
use std::path::Path;

use candle_core::{Device, safetensors};

use super::*;
use crate::teacher::{Conditions, Denoiser, Weights};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn options(samples: usize) -> Options {
    let folder = root().join("../cli/teachers/tiny-unet");
    let url = url::Url::from_file_path(fs::canonicalize(folder).unwrap()).unwrap().to_string();
    Options {
        teacher: url.clone(),
        denoiser: "unet".to_owned(),
        data: url,
        samples,
        seed: 3,
        empty_prompt_fraction: 0.15,
    }
}

#[tokio::test]
async fn figures_depend_neither_on_threads_nor_on_batches() {
    let options = options(BATCH + 1);
    let teacher = load(&options).await.unwrap();
    let data = Data::load(&options.data, 1).await.unwrap();
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut seen = Vec::new();
        let layers = pool.install(|| observe(&options, &teacher, &data, |done| seen.push(done)).unwrap());
        (layers, seen)
    };
    let (layers, seen) = with_threads(1);
    assert_eq!((&layers, &seen), (&with_threads(2).0, &vec![BATCH, BATCH + 1]));
    assert_eq!(layers.len(), 7);
    for layer in &layers {
        let kernel_size = layer.kernel_size.expect("attention that isn't uniform") as usize;
        assert!(layer.cumulative[kernel_size / 2] >= SHARE, "{layer:?}");
        assert!(kernel_size == 1 || layer.cumulative[kernel_size / 2 - 1] < SHARE, "{layer:?}");
        assert!((layer.cumulative.last().unwrap() - 1.0).abs() < 1e-9, "{layer:?}");
        assert!((0.0..1.0).contains(&layer.high_pass), "{layer:?}");
    }

    // Sums of the same numbers, in the same order, one sample at a time.
    let draw = draw(&options, &teacher, &data);
    let mut observer = Observer::default();
    for i in 0..options.samples {
        Inputs::new(&teacher, &data, &[draw.capture(i)]).unwrap().predict(&teacher, &mut observer).unwrap();
    }
    assert_eq!(observer.layers.into_iter().map(Observed::layer).collect::<Vec<_>>(), layers);
}

/// The definition once more, in numpy and float64, from the layers' inputs that diffusers recorded.
#[test]
fn recorded_passes_have_the_figures_of_an_independent_computation() {
    let pixart = [21, 13, 13, 11, 9, 9, 17, 19];
    let pixart_mass = [0.412342, 0.408490, 0.487395, 0.661329, 0.644425, 0.597707, 0.329566, 0.170027];
    let unet = [45, 23, 13, 25, 23, 45, 45];
    let unet_mass = [0.180406, 0.348075, 0.422179, 0.181950, 0.158294, 0.135751, 0.156353];
    let cases = [
        ("tiny-pixart", "transformer", &pixart[..], &pixart_mass[..]),
        ("tiny-unet", "unet", &unet[..], &unet_mass[..]),
    ];
    for (name, folder, kernel_sizes, masses) in cases {
        let model = root().join("../cli/teachers").join(name).join(folder);
        let config = fs::read(model.join("config.json")).unwrap();
        let config = deltaconv_proto::teacher::Teacher::parse(&config).unwrap();
        let mut weights = Weights::open([model.join("diffusion_pytorch_model.safetensors")]).unwrap();
        let denoiser = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
        let recorded =
            safetensors::load(root().join(format!("tests/golden/{name}.safetensors")), &Device::Cpu).unwrap();

        let mut observer = Observer::default();
        let conditions = Conditions::from(recorded["encoder_hidden_states"].clone());
        denoiser.forward(&recorded["latent"], &recorded["timestep"], &conditions, &mut observer).unwrap();
        let layers: Vec<Layer> = observer.layers.into_iter().map(Observed::layer).collect();
        assert_eq!(layers.len(), masses.len());
        for ((layer, kernel_size), mass) in layers.iter().zip(kernel_sizes).zip(masses) {
            assert_eq!(layer.kernel_size, Some(*kernel_size), "{name} {layer:?}");
            assert!((layer.high_pass - mass).abs() < 1e-4, "{name} {layer:?} {mass}");
        }
    }
}
