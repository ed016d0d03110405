//! Something to embed.

/// Passages on different things, by key: a question about one of them finds it first.
pub const PASSAGES: [(&str, &str); 8] = [
    (
        "keys.md",
        "To rotate an API key, create the new key first, deploy it everywhere, and revoke the old key afterwards.",
    ),
    (
        "bread.md",
        "Knead the dough for ten minutes, let it rise in a warm place, and bake the bread until the crust is brown.",
    ),
    (
        "whales.md",
        "The blue whale is the largest animal that has ever lived; it feeds on krill in the cold southern ocean.",
    ),
    (
        "vacuum.md",
        "Autovacuum removes dead row versions from tables so that the space can be used again by the database.",
    ),
    (
        "moon.md",
        "The tides of the sea follow the moon, whose gravity pulls the water on the near side of the earth.",
    ),
    (
        "bicycle.md",
        "Keep the chain of a bicycle clean and oiled, and check the brake pads before every long ride.",
    ),
    (
        "piano.md",
        "A grand piano has eighty-eight keys, and felt hammers strike its strings when a pianist plays.",
    ),
    (
        "volcano.md",
        "Lava flows out of a volcano when molten rock rises from the mantle and breaks through the crust.",
    ),
];

/// A question for each of [`PASSAGES`], in their order.
pub const QUESTIONS: [&str; 8] = [
    "how do I rotate a key?",
    "how long must dough be kneaded?",
    "which animal is the biggest in the world?",
    "what frees the space of dead rows?",
    "why does the sea rise and fall twice a day?",
    "how do I look after my bike?",
    "how does a pianist make the strings sound?",
    "where does lava come from?",
];

/// A short text that no other number gives.
pub fn numbered(number: usize) -> String {
    const SUBJECTS: [&str; 7] = [
        "server", "garden", "ship", "letter", "bridge", "engine", "forest",
    ];
    const DEEDS: [&str; 5] = [
        "was repaired",
        "was painted",
        "was forgotten",
        "was measured",
        "was sold",
    ];
    format!(
        "The {} number {number} {} on day {}.",
        SUBJECTS[number % SUBJECTS.len()],
        DEEDS[number % DEEDS.len()],
        number % 365
    )
}

/// A text of so many sentences, each of which holds `word`.
pub fn long(word: &str, sentences: usize) -> String {
    (0..sentences)
        .map(|number| {
            format!("This {word} stands in sentence {number} of a longer text about the {word}. ")
        })
        .collect()
}

/// An `INSERT` of [`PASSAGES`] into the pipeline `default`.
pub fn insert_passages() -> String {
    let rows: Vec<String> = PASSAGES
        .iter()
        .map(|(key, text)| format!("('{key}', '{text}')"))
        .collect();
    format!(
        "INSERT INTO ingest.documents (key, content) VALUES {}",
        rows.join(", ")
    )
}
