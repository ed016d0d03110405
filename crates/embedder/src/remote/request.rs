//! The body of a request.

use serde_json::{Map, Value};

/// Whose protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// `POST …/embeddings`, answered with `data`.
    OpenAi,
    /// `POST …/api/embed`, answered with `embeddings`.
    Ollama,
}

/// What all requests of an endpoint for one purpose have in common. Made once, so that a request is little more than a
/// copy of its inputs.
#[derive(Clone, PartialEq)]
pub(super) struct Template {
    /// `{…,"input":[`
    head: Vec<u8>,
    /// What goes before every input, as the inside of a JSON string.
    prefix: Vec<u8>,
    /// The same, as text.
    prefix_text: String,
}

impl Template {
    /// `fields` are those of the body beside the inputs.
    pub(super) fn new(fields: &Map<String, Value>, prefix: &str) -> Self {
        let mut head = json(fields);
        // The closing brace makes way for the inputs.
        head.pop();
        if !fields.is_empty() {
            head.push(b',');
        }
        head.extend_from_slice(br#""input":["#);
        let mut inside = json(prefix);
        inside.pop();
        inside.remove(0);
        Self {
            head,
            prefix: inside,
            prefix_text: prefix.to_owned(),
        }
    }

    /// What goes before every input.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix_text
    }

    /// The body for `inputs`; `dimensions` is the name of the field that asks for a number of dimensions, and that number.
    pub(super) fn body(&self, inputs: &[&str], dimensions: Option<(&str, usize)>) -> Vec<u8> {
        // Text has few characters that JSON escapes; a tenth more holds line breaks and quotes.
        let text: usize = inputs.iter().map(|input| input.len()).sum();
        let each = self.prefix.len() + 3;
        let mut body =
            Vec::with_capacity(self.head.len() + text + text / 10 + inputs.len() * each + 64);
        body.extend_from_slice(&self.head);
        for (number, input) in inputs.iter().enumerate() {
            if number > 0 {
                body.push(b',');
            }
            if self.prefix.is_empty() {
                append_json(&mut body, input);
            } else {
                body.push(b'"');
                body.extend_from_slice(&self.prefix);
                let quote = body.len();
                append_json(&mut body, input);
                body.remove(quote);
            }
        }
        body.push(b']');
        if let Some((field, number)) = dimensions {
            body.push(b',');
            append_json(&mut body, field);
            body.extend_from_slice(format!(":{number}").as_bytes());
        }
        body.push(b'}');
        body
    }
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_json(&mut bytes, value);
    bytes
}

fn append_json<T: serde::Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(bytes, value).expect("strings and JSON values can be written to memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(json: Value) -> Map<String, Value> {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn a_body_is_the_fields_the_inputs_and_the_dimensions() {
        let template = Template::new(&fields(serde_json::json!({"model": "m", "x": 1.50})), "");
        let body = template.body(&["a\n\"b\"", "c"], Some(("dimensions", 8)));
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"model": "m", "x": 1.5, "input": ["a\n\"b\"", "c"], "dimensions": 8})
        );
    }

    proptest! {
        #[test]
        fn every_text_arrives_with_its_prefix(
            inputs in proptest::collection::vec("\\PC{0,20}|[\\x00-\\x7f]{0,9}", 0..5),
            prefix in "\\PC{0,10}",
        ) {
            let template = Template::new(&Map::new(), &prefix);
            let texts: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let body: Value = serde_json::from_slice(&template.body(&texts, None)).unwrap();
            let expected: Vec<String> = inputs.iter().map(|input| format!("{prefix}{input}")).collect();
            prop_assert_eq!(body, serde_json::json!({"input": expected}));
        }
    }
}
