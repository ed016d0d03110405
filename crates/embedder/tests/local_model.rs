//! A real model, outside the tree. `PG_INGEST_MODEL_DIR` names the directory that holds `all-MiniLM-L6-v2/`; without it
//! these tests say so and do nothing.

use std::path::PathBuf;

use embedder::local::{InferenceThreads, LocalModel};

fn model_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("PG_INGEST_MODEL_DIR")
        .map(|dir| PathBuf::from(dir).join("all-MiniLM-L6-v2"));
    if dir.is_none() {
        eprintln!("skipped: PG_INGEST_MODEL_DIR is not set");
    }
    dir
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_agree_with_the_unquantised_model() {
    let Some(dir) = model_dir() else { return };
    let model = LocalModel::load(&dir).unwrap();
    let reference: serde_json::Value =
        serde_json::from_str(include_str!("fixtures/reference.json")).unwrap();
    let rows = reference.as_array().unwrap();
    let texts: Vec<&str> = rows
        .iter()
        .map(|row| row["text"].as_str().unwrap())
        .collect();
    let vectors = model.embed(&texts, &InferenceThreads::new(2)).unwrap();
    let agreements: Vec<f64> = vectors
        .iter()
        .zip(rows)
        .map(|(vector, row)| cosine(vector, &half_floats(row["vector"].as_str().unwrap())))
        .collect();
    let least = agreements.iter().copied().fold(1.0, f64::min);
    let mean = agreements.iter().sum::<f64>() / agreements.len() as f64;
    println!(
        "cosine with the reference over {} passages: least {least:.4}, mean {mean:.4}",
        rows.len()
    );
    for (agreement, text) in agreements.iter().zip(&texts) {
        assert!(*agreement >= 0.98, "{agreement:.4} for {text:?}");
    }
}

#[test]
fn a_vector_does_not_depend_on_its_neighbours() {
    let Some(dir) = model_dir() else { return };
    let model = LocalModel::load(&dir).unwrap();
    let threads = InferenceThreads::new(2);
    let long = "A checkpoint is a point in the transaction log at which all data files have been updated. ".repeat(30);
    let texts = ["short", long.as_str(), "", "!!!!", "How do I rotate a key?"];
    let together = model.embed(&texts, &threads).unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        let alone = model.embed(&[text], &threads).unwrap();
        assert!(cosine(&alone[0], vector) > 0.999_999, "{text:?}");
        assert_eq!(vector.len(), model.dimensions());
        let length: f32 = vector.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4);
    }
}

#[test]
fn what_is_alike_is_near() {
    let Some(dir) = model_dir() else { return };
    let model = LocalModel::load(&dir).unwrap();
    let texts = [
        "How can I change a password?",
        "Resetting the secret of an account",
        "The recipe needs two eggs",
    ];
    let vectors = model.embed(&texts, &InferenceThreads::new(1)).unwrap();
    assert!(cosine(&vectors[0], &vectors[1]) > cosine(&vectors[0], &vectors[2]) + 0.2);
}

#[test]
fn the_files_describe_the_model() {
    let Some(dir) = model_dir() else { return };
    LocalModel::check_files(&dir).unwrap();
    let info = LocalModel::describe(&dir).unwrap();
    let listed = embedder::catalogue::lookup(&"local/all-MiniLM-L6-v2".parse().unwrap()).unwrap();
    assert_eq!(
        (info.dimensions, info.max_tokens),
        (listed.dimensions, listed.max_input_tokens)
    );
    assert_eq!(info.tokenizer.special_tokens(), 2);
}

#[test]
fn nothing_to_embed_is_no_error() {
    let Some(dir) = model_dir() else { return };
    let model = LocalModel::load(&dir).unwrap();
    assert_eq!(
        model.embed(&[], &InferenceThreads::new(2)).unwrap(),
        Vec::<Vec<f32>>::new()
    );
}

#[test]
fn a_damaged_model_is_an_error_that_names_the_file() {
    let Some(dir) = model_dir() else { return };
    let damaged = std::env::temp_dir().join(format!("embedder-damaged-{}", std::process::id()));
    let tokenizer = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let model = std::fs::read(dir.join("model.onnx")).unwrap();
    let mut overwritten = model.clone();
    overwritten[..4096].fill(0x55);
    let graphs = [
        model[..model.len() / 2].to_vec(),
        b"not a model".to_vec(),
        overwritten,
        vec![0; 100_000],
        vec![],
    ];
    std::fs::create_dir_all(&damaged).unwrap();
    std::fs::write(damaged.join("tokenizer.json"), &tokenizer).unwrap();
    for graph in graphs {
        std::fs::write(damaged.join("model.onnx"), &graph).unwrap();
        let error = LocalModel::load(&damaged).unwrap_err();
        assert!(
            error.model_unusable && error.message.contains("model.onnx"),
            "{error}"
        );
    }
    std::fs::write(damaged.join("model.onnx"), &model).unwrap();
    for json in [
        b"{}".to_vec(),
        tokenizer[..5000].to_vec(),
        b"\xff\xfe".to_vec(),
    ] {
        std::fs::write(damaged.join("tokenizer.json"), &json).unwrap();
        let error = LocalModel::load(&damaged).unwrap_err();
        assert!(
            error.model_unusable && error.message.contains("tokenizer.json"),
            "{error}"
        );
    }
    std::fs::remove_dir_all(&damaged).unwrap();
}

#[test]
fn a_missing_model_is_an_error_that_names_the_file() {
    let nowhere = std::path::Path::new("/nowhere/model");
    let errors = [
        LocalModel::load(nowhere).unwrap_err(),
        LocalModel::check_files(nowhere).unwrap_err(),
    ];
    assert!(
        errors
            .iter()
            .all(|error| error.model_unusable && error.message.contains("/nowhere/model"))
    );
    assert!(LocalModel::describe(nowhere).unwrap_err().model_unusable);
}

/// Base64 of little-endian 16-bit floats.
fn half_floats(base64: &str) -> Vec<f32> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = base64
        .bytes()
        .filter(|byte| *byte != b'=')
        .map(value)
        .collect();
    let bytes: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let bits = four
                .iter()
                .fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit))
                << (6 * (4 - four.len()));
            bits.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect();
    bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| half_to_float(u16::from_le_bytes(*pair)))
        .collect()
}

fn half_to_float(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    match exponent {
        0 => sign * fraction * 2_f32.powi(-24),
        _ => sign * (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    }
}
