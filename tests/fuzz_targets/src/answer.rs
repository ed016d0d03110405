//! Answers of embeddings APIs.

use embedder::ErrorClass;
use embedder::remote::fuzzing::{decode, longest_answer, refusal_inside};
use serde_json::Value;

/// `o` or `l` (whose answer: OpenAI's or Ollama's), a digit (inputs), a digit (dimensions), the body.
///
/// What is taken for vectors is one for each input, whole and finite, each from the item with its index. What is not is a
/// bad answer.
pub fn answer(bytes: &[u8]) {
    let [form, inputs, dimensions, body @ ..] = bytes else {
        return;
    };
    let ollama = form % 2 == 0;
    let (inputs, dimensions) = (usize::from(inputs % 16), usize::from(dimensions % 16));
    if body.len() > longest_answer(inputs, dimensions) {
        return;
    }
    let _ = refusal_inside(body, "h", None);
    let vectors = match decode(ollama, body, inputs, dimensions) {
        Ok((vectors, _)) => vectors,
        Err(error) => {
            assert_eq!(error.class, ErrorClass::BadResponse);
            assert!(!error.message.is_empty());
            return;
        }
    };
    assert_eq!(vectors.len(), inputs);
    for (number, vector) in vectors.iter().enumerate() {
        assert_eq!(vector.len(), dimensions);
        assert!(vector.iter().all(|x| x.is_finite()));
        if let Some(numbers) = numbers(body, ollama, number) {
            let same = |(x, y): (&f32, f64)| (f64::from(*x) - y).abs() <= y.abs() * 1e-6 + 1e-30;
            assert_eq!(numbers.len(), dimensions);
            assert!(
                vector.iter().zip(numbers).all(same),
                "vector {number} is not that of its input"
            );
        }
    }
}

/// The plain numbers of an input, read in another way; None where this way cannot read them.
fn numbers(body: &[u8], ollama: bool, input: usize) -> Option<Vec<f64>> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let vector = if ollama {
        body.get("embeddings")?.get(input)?
    } else {
        let index = |item: &Value| item.get("index").map_or(Some(0), Value::as_u64);
        let items = body.get("data")?.as_array()?;
        if !items.iter().all(Value::is_object) {
            return None;
        }
        let found = items.iter().find(|item| index(item) == Some(input as u64));
        found.expect("an item for each input").get("embedding")?
    };
    vector.as_array()?.iter().map(Value::as_f64).collect()
}
