//! The body of an answer: vectors, checked before anybody sees them.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::request::Wire;
use crate::{EmbedError, ErrorClass};

/// Some servers leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The most bytes that one number takes in an answer: a double in full, its comma, a line break and its indentation.
const BYTES_PER_NUMBER: usize = 40;

/// Bytes beside the numbers: for each vector its frame, for the answer the rest, and room for vectors that are longer than
/// expected, so that a wrong dimension is told as such.
const BYTES_PER_VECTOR: usize = 1024;
const BYTES_PER_ANSWER: usize = 1 << 20;

/// The longest answer that makes sense, in bytes and after decompression. What is longer is not read to its end.
pub(super) fn longest(inputs: usize, dimensions: usize) -> usize {
    dimensions
        .saturating_mul(BYTES_PER_NUMBER)
        .saturating_add(BYTES_PER_VECTOR)
        .saturating_mul(inputs)
        .saturating_add(BYTES_PER_ANSWER)
}

#[derive(Deserialize)]
struct OpenAiAnswer {
    data: List<Item>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Item {
    /// Gemini's compatible endpoint follows Protocol Buffers, which leave a zero out. A second item without an index is
    /// therefore a second zero, and refused as such.
    #[serde(default)]
    index: u64,
    embedding: Vector,
}

#[derive(Deserialize)]
struct OllamaAnswer {
    embeddings: List<Vector>,
    #[serde(default)]
    prompt_eval_count: Count,
}

/// The vectors in an answer, in the order of the inputs, and the tokens that were counted, if the answer tells.
///
/// # Errors
/// `bad_response` for what is not one finite vector of `dimensions` numbers for each input; `model_unusable` if all vectors
/// have another length.
pub(super) fn decode(
    wire: Wire,
    body: &[u8],
    inputs: usize,
    dimensions: usize,
) -> Result<(Vec<Vec<f32>>, Option<u64>), EmbedError> {
    let (vectors, tokens) = match wire {
        Wire::OpenAi => {
            let answer: OpenAiAnswer = parse(body)?;
            count(answer.data.length, inputs)?;
            (by_index(answer.data.kept, inputs)?, answer.usage.0)
        }
        Wire::Ollama => {
            // Ollama answers in the order of the inputs and knows no index.
            let answer: OllamaAnswer = parse(body)?;
            count(answer.embeddings.length, inputs)?;
            let vectors = answer.embeddings.kept.into_iter().map(|v| v.0).collect();
            (vectors, answer.prompt_eval_count.0)
        }
    };
    check(&vectors, dimensions)?;
    Ok((vectors, tokens))
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, EmbedError> {
    serde_json::from_slice(body).map_err(|error| {
        use serde_json::error::Category;
        let start = body.trim_ascii_start();
        let what = match error.classify() {
            _ if start.is_empty() => "the answer is empty".to_owned(),
            _ if start.starts_with(b"<") => "the answer is a web page, not JSON".to_owned(),
            Category::Eof => "the answer ends in the middle".to_owned(),
            Category::Syntax | Category::Io => format!("the answer is not JSON: {error}"),
            Category::Data => format!("the answer is not a list of vectors: {error}"),
        };
        bad(what)
    })
}

fn bad(message: impl Into<String>) -> EmbedError {
    EmbedError::new(ErrorClass::BadResponse, message)
}

fn count(vectors: usize, inputs: usize) -> Result<(), EmbedError> {
    if vectors == inputs {
        return Ok(());
    }
    Err(bad(format!(
        "the answer has {vectors} vectors for {inputs} inputs"
    )))
}

/// The vectors in the order of their indices, which must be those of the inputs, each once.
fn by_index(items: Vec<Item>, inputs: usize) -> Result<Vec<Vec<f32>>, EmbedError> {
    let mut vectors: Vec<Option<Vec<f32>>> = Vec::new();
    vectors.resize_with(inputs, || None);
    for item in items {
        let place = usize::try_from(item.index)
            .ok()
            .and_then(|index| vectors.get_mut(index))
            .ok_or_else(|| {
                bad(format!(
                    "the answer has a vector with index {} for {inputs} inputs",
                    item.index
                ))
            })?;
        if place.replace(item.embedding.0).is_some() {
            return Err(bad(format!(
                "the answer has more than one vector with index {}",
                item.index
            )));
        }
    }
    // As many vectors as inputs and no index twice: none is missing.
    Ok(vectors.into_iter().flatten().collect())
}

fn check(vectors: &[Vec<f32>], dimensions: usize) -> Result<(), EmbedError> {
    if let Some((number, wrong)) = vectors
        .iter()
        .enumerate()
        .find(|(_, vector)| vector.len() != dimensions)
    {
        let length = wrong.len();
        if length == 0 || vectors.iter().any(|vector| vector.len() != length) {
            return Err(bad(format!(
                "vector {number} of the answer has {length} dimensions instead of {dimensions}"
            )));
        }
        return Err(EmbedError {
            class: ErrorClass::BadResponse,
            ..EmbedError::model_unusable(format!(
                "the model answers with {length} dimensions, the pipeline has {dimensions}"
            ))
        }
        .with_hint(format!(
            "Create the pipeline with dimensions => {length}, or name a model that has {dimensions}."
        )));
    }
    if let Some(number) = vectors
        .iter()
        .position(|vector| !vector.iter().all(|x| x.is_finite()))
    {
        return Err(bad(format!(
            "vector {number} of the answer holds a number that is not finite"
        )));
    }
    Ok(())
}

/// More vectors than any request asks for are counted and not kept: of next to nothing, each takes a dozen times as much
/// memory as its place in the answer.
const MOST_VECTORS: usize = 1 << 16;

struct List<T> {
    kept: Vec<T>,
    length: usize,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MOST_VECTORS {
                    match seq.next_element()? {
                        Some(element) => kept.push(element),
                        None => break,
                    }
                }
                let mut length = kept.len();
                // At the end, there is no further element to ask for.
                if length == MOST_VECTORS {
                    while seq.next_element::<IgnoredAny>()?.is_some() {
                        length += 1;
                    }
                }
                Ok(List { kept, length })
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// A vector as an array of numbers or as the base64 of little-endian 32-bit floats, whichever the server sends.
struct Vector(Vec<f32>);

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Floats;

        impl<'de> Visitor<'de> for Floats {
            type Value = Vector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vector as numbers or as base64")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vector, A::Error> {
                let mut vector = Vec::new();
                while let Some(x) = seq.next_element()? {
                    vector.push(x);
                }
                Ok(Vector(vector))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vector, E> {
                let bytes = BASE64
                    .decode(text)
                    .map_err(|_| E::custom("a vector is not valid base64"))?;
                let (floats, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::custom(format_args!(
                        "a vector of {} bytes is not made of 4-byte floats",
                        bytes.len()
                    )));
                }
                Ok(Vector(
                    floats.iter().map(|x| f32::from_le_bytes(*x)).collect(),
                ))
            }
        }

        deserializer.deserialize_any(Floats)
    }
}

/// A count that is only information: what is no count does not spoil an answer.
#[derive(Default)]
struct Count(Option<u64>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(Lenient)
            .map(|found| Self(found.number))
    }
}

/// `usage`: the total, or what the inputs took.
#[derive(Default)]
struct Usage(Option<u64>);

impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(Lenient)
            .map(|found| Self(found.total_tokens.or(found.prompt_tokens)))
    }
}

/// Reads whatever there is and keeps counts of tokens, without ever growing.
struct Lenient;

#[derive(Default)]
struct Found {
    number: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
}

impl<'de> Visitor<'de> for Lenient {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Found, E> {
        Ok(Found {
            number: Some(number),
            ..Found::default()
        })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::TotalTokens => found.total_tokens = map.next_value::<Count>()?.0,
                Key::PromptTokens => found.prompt_tokens = map.next_value::<Count>()?.0,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    TotalTokens,
    PromptTokens,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn open_ai(body: &str, inputs: usize, dimensions: usize) -> Result<Vec<Vec<f32>>, EmbedError> {
        decode(Wire::OpenAi, body.as_bytes(), inputs, dimensions).map(|(vectors, _)| vectors)
    }

    fn items(items: &[(u64, Value)]) -> String {
        let data: Vec<Value> = items
            .iter()
            .map(|(index, embedding)| json!({"index": index, "embedding": embedding}))
            .collect();
        json!({ "data": data }).to_string()
    }

    fn base64(vector: &[f32]) -> Value {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        STANDARD.encode(bytes).into()
    }

    #[test]
    fn vectors_go_to_the_input_of_their_index() {
        let body = items(&[
            (2, json!([5, 6.0])),
            (0, json!([1, 2.5])),
            (1, base64(&[3.0, 4.0])),
        ]);
        assert_eq!(
            open_ai(&body, 3, 2).unwrap(),
            [[1.0, 2.5], [3.0, 4.0], [5.0, 6.0]]
        );
    }

    #[test]
    fn an_index_that_is_left_out_is_zero_and_nothing_else() {
        let body =
            json!({"data": [{"index": 1, "embedding": [2]}, {"embedding": [1]}]}).to_string();
        assert_eq!(open_ai(&body, 2, 1).unwrap(), [[1.0], [2.0]]);
        let body = json!({"data": [{"embedding": [2]}, {"embedding": [1]}]}).to_string();
        assert!(
            open_ai(&body, 2, 1)
                .unwrap_err()
                .message
                .contains("index 0")
        );
    }

    #[test]
    fn base64_comes_with_and_without_padding() {
        let text = base64(&[1.0, -2.0]).as_str().unwrap().to_owned();
        for text in [text.clone(), text.trim_end_matches('=').to_owned()] {
            assert_eq!(
                open_ai(&items(&[(0, text.into())]), 1, 2).unwrap(),
                [[1.0, -2.0]]
            );
        }
    }

    #[test]
    fn whatever_is_wrong_with_an_answer_is_told_in_plain_words() {
        let one = json!([1.0, 2.0]);
        let cases: [(String, &str); 22] = [
            (items(&[(0, one.clone())]), "1 vectors for 2 inputs"),
            (items(&[]), "0 vectors for 2 inputs"),
            (
                items(&[(0, one.clone()), (0, one.clone())]),
                "more than one vector with index 0",
            ),
            (
                items(&[(0, one.clone()), (2, one.clone())]),
                "index 2 for 2 inputs",
            ),
            (
                items(&[(0, one.clone()), (u64::MAX, one.clone())]),
                "for 2 inputs",
            ),
            (
                items(&[(0, one.clone()), (1, json!([1.0]))]),
                "vector 1 of the answer has 1 dimensions instead of 2",
            ),
            (items(&[(0, one.clone()), (1, json!([]))]), "0 dimensions"),
            (
                items(&[(0, one.clone()), (1, json!(null))]),
                "a vector as numbers or as base64",
            ),
            (items(&[(0, one.clone()), (1, json!([1.0, null]))]), "null"),
            (
                items(&[(0, one.clone()), (1, json!([1.0, "2"]))]),
                "not a list of vectors",
            ),
            (
                items(&[(0, one.clone()), (1, base64(&[1.0, f32::NAN]))]),
                "vector 1 of the answer holds a number that is not finite",
            ),
            (
                items(&[(0, one.clone()), (1, base64(&[f32::INFINITY, 1.0]))]),
                "not finite",
            ),
            (
                items(&[(0, one.clone()), (1, json!([1e300, 1.0]))]),
                "not finite",
            ),
            (
                items(&[(0, one.clone()), (1, json!("!!!!"))]),
                "not valid base64",
            ),
            (
                items(&[(0, one.clone()), (1, json!("AAAAAAA="))]),
                "5 bytes",
            ),
            (
                r#"{"data":[{"index":-1,"embedding":[1,2]},{"index":1,"embedding":[1,2]}]}"#
                    .to_owned(),
                "not a list of vectors",
            ),
            (
                r#"{"data":[{"index":0,"embedding":[1,2"#.to_owned(),
                "ends in the middle",
            ),
            (
                r#"{"data":[{"index":0,"embedding":[1,NaN]}]}"#.to_owned(),
                "not JSON",
            ),
            ("<html><body>Welcome</body></html>".to_owned(), "a web page"),
            (" \n".to_owned(), "empty"),
            (r#"{"object":"list"}"#.to_owned(), "missing field `data`"),
            ("[".repeat(100_000), "not"),
        ];
        for (body, expected) in cases {
            let error = open_ai(&body, 2, 2).unwrap_err();
            assert_eq!(error.class, ErrorClass::BadResponse, "{body:.80}");
            assert!(!error.model_unusable, "{body:.80}");
            assert!(
                error.message.contains(expected),
                "{:?} lacks {expected:?}",
                error.message
            );
        }
    }

    #[test]
    fn other_dimensions_in_all_vectors_are_the_models_and_not_the_documents() {
        let body = items(&[(0, json!([1, 2, 3])), (1, json!([4, 5, 6]))]);
        let error = open_ai(&body, 2, 2).unwrap_err();
        assert!(error.model_unusable && error.blocks_pipeline());
        assert!(error.hint.unwrap().contains("dimensions => 3"));
    }

    #[test]
    fn ollamas_answers_are_in_order() {
        let body = br#"{"model":"m","embeddings":[[1,2],[3,4]],"prompt_eval_count":7}"#;
        assert_eq!(
            decode(Wire::Ollama, body, 2, 2).unwrap(),
            (vec![vec![1.0, 2.0], vec![3.0, 4.0]], Some(7))
        );
        let error = decode(Wire::Ollama, body, 3, 2).unwrap_err();
        assert!(error.message.contains("2 vectors for 3 inputs"));
    }

    #[test]
    fn vectors_beyond_all_measure_are_counted_and_not_kept() {
        let many = MOST_VECTORS + 5;
        let body = format!("{{\"embeddings\":[{}[0]]}}", "[0],".repeat(many - 1));
        let answer: OllamaAnswer = parse(body.as_bytes()).unwrap();
        assert_eq!(
            (answer.embeddings.kept.len(), answer.embeddings.length),
            (MOST_VECTORS, many)
        );
        let error = decode(Wire::Ollama, body.as_bytes(), 2, 1).unwrap_err();
        assert!(error.message.contains(&format!("{many} vectors")));
        let exactly = body.replacen("[0],", "", 5);
        let answer: OllamaAnswer = parse(exactly.as_bytes()).unwrap();
        assert_eq!(answer.embeddings.length, MOST_VECTORS);
    }

    #[test]
    fn tokens_are_told_if_the_answer_tells_and_never_spoil_it() {
        for (usage, tokens) in [
            (json!({"prompt_tokens": 5, "total_tokens": 6}), Some(6)),
            (json!({"prompt_tokens": 5}), Some(5)),
            (
                json!({"total_tokens": null, "prompt_tokens": 5, "x": [{}]}),
                Some(5),
            ),
            (json!({"total_tokens": -1}), None),
            (json!("many"), None),
            (json!(null), None),
            (json!([1, 2]), None),
            (json!(7.5), None),
        ] {
            let body = json!({"data": [{"index": 0, "embedding": [1]}], "usage": usage});
            let (_, found) = decode(Wire::OpenAi, body.to_string().as_bytes(), 1, 1).unwrap();
            assert_eq!(found, tokens, "{usage}");
        }
    }

    #[test]
    fn the_cap_has_room_for_any_sensible_answer() {
        let vector = vec![-0.123_456_789_012_345_67_f64; 256];
        let data: Vec<Value> = (0..50)
            .map(|index| json!({"object": "embedding", "index": index, "embedding": vector}))
            .collect();
        let pretty = serde_json::to_string_pretty(&json!({ "data": data })).unwrap();
        assert!(pretty.len() < longest(50, 256) - BYTES_PER_ANSWER);
        assert_eq!(longest(usize::MAX, usize::MAX), usize::MAX);
    }

    proptest! {
        #[test]
        fn any_permutation_is_put_in_order(
            (order, dimensions) in (1usize..20).prop_flat_map(|n| (Just((0..n).collect::<Vec<_>>()).prop_shuffle(), 1usize..5)),
            as_base64 in any::<bool>(),
        ) {
            let vector = |index: usize| vec![index as f32 + 0.5; dimensions];
            let listed: Vec<(u64, Value)> = order
                .iter()
                .map(|index| {
                    let vector = vector(*index);
                    (*index as u64, if as_base64 { base64(&vector) } else { json!(vector) })
                })
                .collect();
            let expected: Vec<Vec<f32>> = (0..order.len()).map(vector).collect();
            prop_assert_eq!(open_ai(&items(&listed), order.len(), dimensions).unwrap(), expected);
        }

        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..80) {
            let _ = decode(Wire::OpenAi, &body, 1, 2);
            let _ = decode(Wire::Ollama, &body, 1, 2);
            let whole = items(&[(0, base64(&[1.0, 2.0]))]);
            let cut = cut.min(whole.len() - 1);
            prop_assert!(open_ai(&whole[..cut], 1, 2).is_err());
        }
    }
}
