//! Looking for what was written.

use super::*;
use crate::once::look_up::signs;

#[test]
fn a_text_that_was_written_and_forgotten_is_looked_for_and_sent_only_where_it_is_not_there() {
    let mut world = World::new(FEW);
    let corpus: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n]).collect();
    for texts in &corpus {
        world.submit(texts, false);
    }
    while world.sent() < 20 {
        world.send(7);
        world.answer(0);
    }
    // Before it is written it is still at hand.
    world.submit(&[0, 1, 2], false);
    assert_eq!((world.sent(), world.look_up(true)), (20, false));
    world.write();
    world.target.remove(&key(3));
    world.take(&Step::Meddle(4));
    assert_eq!(world.asked.load(Ordering::Relaxed), 0);
    // One that may be to blame does not wait for that.
    world.submit(&[5], true);
    assert_eq!(world.waiting.items().len(), 1);
    for texts in &corpus {
        world.submit(texts, false);
    }
    assert_eq!(world.waiting.items().len(), 1);
    while world.look_up(true) {}
    assert!(world.read >= 16, "{}", world.read);
    let ended = world.finish();
    assert_eq!(world.sent(), 23);
    let reused = |ticket: u64| match &ended[&ticket] {
        Outcome::Embedded { chunks, .. } => chunks.iter().all(|chunk| chunk.reused),
        other => panic!("{other:?}"),
    };
    let again = (22..42).filter(|ticket| !reused(*ticket));
    assert_eq!(again.collect::<Vec<u64>>(), [25, 26]);
}

#[test]
fn what_waits_for_a_look_is_sent_when_nobody_takes_it_and_the_same_text_only_once() {
    let mut world = World::new(FEW);
    world.submit(&[1], false);
    world.finish();
    for text in 2..20 {
        world.submit(&[text], false);
        world.finish();
    }
    for _ in 0..3 {
        world.submit(&[1], false);
    }
    assert!(world.waiting.items().is_empty());
    drop(world.once.next_look_up(|_| 0).expect("somebody waits"));
    assert_eq!(world.waiting.items().len(), 1);
    world.withdraw(19);
    world.finish();
    assert_eq!(world.sent["1"], 2);
}

#[test]
fn a_look_takes_documents_for_as_many_chunks_as_it_may_read_and_one_at_least() {
    let mut world = World::new(FEW);
    for document in 0..6u8 {
        world.submit(&[2 * document, 2 * document + 1], false);
    }
    world.finish();
    world.once.table().vectors = Vectors::new(1);
    for document in 0..6u8 {
        world.submit(&[2 * document, 2 * document + 1], false);
    }
    let mut documents = Vec::new();
    for most in [0, 5, usize::MAX] {
        let wanted = world.once.next_look_up(|_| most).expect("somebody waits");
        wanted.answer(&pipeline(0), |keys| {
            documents.push(keys.len());
            let found = keys.iter().flat_map(|key| world.target[*key].clone());
            found.collect()
        });
    }
    assert_eq!(documents, [1, 2, 3]);
    assert!(world.once.next_look_up(|_| 0).is_none());
}

#[test]
fn nobody_looks_for_what_was_made_as_the_pipeline_is_defined_no_more() {
    let mut world = World::new(FEW);
    for text in [1, 2] {
        world.submit(&[text], false);
        world.finish();
    }
    world.submit(&[1], false);
    world.take(&Step::Redefine);
    let wanted = world.once.next_look_up(|_| 1).expect("it waits");
    wanted.answer(&pipeline(1), |_| panic!("the target has other vectors"));
    world.submit(&[2], false);
    assert_eq!(world.waiting.items().len(), 2);
}

#[test]
fn a_vector_is_told_by_the_signs_of_its_numbers() {
    let vector: Vec<f32> = (0..1536).map(|n| (n as f32 * 0.7).sin()).collect();
    let rounded: Vec<f32> = vector
        .iter()
        .map(|x| (x * 1024.0).round() / 1024.0)
        .collect();
    let told = signs(&vector);
    assert_eq!(signs(&rounded), told);
    for place in [0, 63, 64, 1535] {
        let mut other = vector.clone();
        other[place] = -other[place];
        assert_ne!(signs(&other), told, "{place}");
    }
    assert_ne!(signs(&vector[..1535]), told);
}
