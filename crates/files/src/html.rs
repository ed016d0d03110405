//! HTML as Markdown: headings, paragraphs, lists, tables and code stay; menus, scripts and addresses go.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use htmd::element_handler::{HandlerResult, Handlers};
use htmd::options::{BulletListMarker, Options};
use htmd::{Element, HtmlToMarkdown, Node};
use markup5ever_rcdom::NodeData;

/// Elements that hold no prose.
const SKIPPED: [&str; 14] = [
    "script", "style", "nav", "template", "svg", "noscript", "iframe", "head", "img", "button",
    "select", "input", "canvas", "object",
];

/// Pages nest a few dozen elements. Deeper than this, the parser's time grows with the square of the depth and htmd's
/// recursion with the stack, so such a page only has its tags removed.
const MAX_DEPTH: usize = 200;

/// The drawings of a page have some thousand such elements at most.
const MAX_CLOSED_THEMSELVES: usize = 10_000;

/// Converts a page. Never fails and never panics; a page that is built to hurt a parser is only stripped of its tags.
pub fn html_to_markdown(html: &str) -> String {
    if counted_depth(html) > MAX_DEPTH {
        return strip_tags(html);
    }
    let converter = converter();
    let Ok(tree) = converter.html_to_tree(html) else {
        return strip_tags(html);
    };
    let shape = Shape::of(&tree);
    if shape.depth > 4 * MAX_DEPTH {
        return strip_tags(html);
    }
    let Ok(markdown) = catch_unwind(AssertUnwindSafe(|| converter.tree_to_markdown(&tree))) else {
        return strip_tags(html);
    };
    let markdown = tidy(&markdown);
    match shape.title {
        Some(title) if !shape.has_heading && !title.trim().is_empty() => {
            format!(
                "# {}\n\n{markdown}",
                title.split_whitespace().collect::<Vec<_>>().join(" ")
            )
        }
        _ => markdown,
    }
}

fn converter() -> HtmlToMarkdown {
    HtmlToMarkdown::builder()
        .options(Options {
            bullet_list_marker: BulletListMarker::Dash,
            ul_bullet_spacing: 1,
            ol_number_spacing: 1,
            ..Options::default()
        })
        .scripting_enabled(false)
        .skip_tags(SKIPPED.to_vec())
        // An address says nothing about a text's meaning, so of a link only its text stays.
        .add_handler(vec!["a"], |handlers: &dyn Handlers, element: Element| {
            Some(handlers.walk_children(element.node))
        })
        .add_handler(vec!["div"], without_navigation)
        .add_handler(vec!["em", "i"], emphasis)
        .add_handler(vec!["pre"], code_block)
        .build()
}

/// DocBook's links to the previous and the next page stand in divisions of these classes.
fn without_navigation(handlers: &dyn Handlers, element: Element) -> Option<HandlerResult> {
    let navigation = attribute(&element, "class").is_some_and(|classes| {
        classes
            .split_ascii_whitespace()
            .any(|class| matches!(class, "navheader" | "navfooter"))
    });
    if navigation {
        None
    } else {
        handlers.fallback(element)
    }
}

/// Manuals set placeholders in emphasized code; the code's quotes are marks enough.
fn emphasis(handlers: &dyn Handlers, element: Element) -> Option<HandlerResult> {
    let plain = handlers.walk_children(element.node);
    if plain.content.trim_start().starts_with('`') {
        Some(plain)
    } else {
        handlers.fallback(element)
    }
}

/// Fenced, whether or not there is a `code` element within, and without any marks inside.
fn code_block(_: &dyn Handlers, element: Element) -> Option<HandlerResult> {
    let text = text_of(element.node);
    let text = text.trim_matches('\n');
    if text.trim().is_empty() {
        return None;
    }
    let longest_run = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest_run + 1));
    Some(format!("\n\n{fence}\n{text}\n{fence}\n\n").into())
}

fn attribute<'a>(element: &'a Element, name: &str) -> Option<&'a str> {
    element
        .attrs
        .iter()
        .find(|attribute| &*attribute.name.local == name)
        .map(|attribute| &*attribute.value)
}

/// All text below a node.
fn text_of(node: &Rc<Node>) -> String {
    let mut text = String::new();
    let mut open = vec![Rc::clone(node)];
    while let Some(node) = open.pop() {
        if let NodeData::Text { contents } = &node.data {
            text.push_str(&contents.borrow());
        }
        open.extend(node.children.borrow().iter().rev().cloned());
    }
    text
}

/// What the tree of a page looks like; found without recursion.
#[derive(Default)]
struct Shape {
    depth: usize,
    has_heading: bool,
    title: Option<String>,
}

impl Shape {
    fn of(tree: &Rc<Node>) -> Self {
        let mut shape = Self::default();
        let mut open = vec![(Rc::clone(tree), 0)];
        while let Some((node, depth)) = open.pop() {
            shape.depth = shape.depth.max(depth);
            if let NodeData::Element { name, .. } = &node.data {
                match &*name.local {
                    "h1" | "h2" => shape.has_heading = true,
                    "title" if shape.title.is_none() => shape.title = Some(text_of(&node)),
                    _ => {}
                }
            }
            open.extend(
                node.children
                    .borrow()
                    .iter()
                    .map(|child| (Rc::clone(child), depth + 1)),
            );
        }
        shape
    }
}

/// Takes back what htmd does for a reader's eyes and what only costs tokens here, outside code: escapes within words
/// (`max\_connections` is not the name that users ask for), white space that aligns the columns of tables, and their
/// rules (to BERT, each dash is a token).
fn tidy(markdown: &str) -> String {
    let mut text = String::with_capacity(markdown.len());
    let mut fenced = false;
    for line in markdown.split_inclusive('\n') {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced || line.starts_with("```") {
            text.push_str(line);
            continue;
        }
        let compact;
        let line = if line.starts_with('|') {
            compact = compact_row(line);
            compact.as_str()
        } else {
            line
        };
        if !line.contains('\\') {
            text.push_str(line);
            continue;
        }
        let mut in_code = false;
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match (character, characters.peek()) {
                ('\\', Some('_' | '[' | ']')) if !in_code => {}
                ('\\', Some(&next)) if !in_code => {
                    text.extend(['\\', next]);
                    characters.next();
                }
                _ => {
                    in_code ^= character == '`';
                    text.push(character);
                }
            }
        }
    }
    text
}

/// A table's row with single spaces and short rules.
fn compact_row(row: &str) -> String {
    let is_rule = row
        .chars()
        .all(|c| matches!(c, '|' | '-' | ':' | ' ' | '\n'));
    let mut compact = String::with_capacity(row.len());
    let mut dashes = 0;
    for character in row.chars() {
        dashes = if is_rule && character == '-' {
            dashes + 1
        } else {
            0
        };
        if dashes > 3 || (character == ' ' && compact.ends_with(' ')) {
            continue;
        }
        compact.push(character);
    }
    compact
}

/// Elements without content (HTML standard, "void elements"), and those whose end tag may be left out because the next of
/// their kind ends them: neither makes a page deeper by itself.
const NOT_NESTING: [&str; 25] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
    "wbr", "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "param",
];

/// How many elements are open at once, at most, by a look at the tags alone.
///
/// A slash before the closing bracket ends an element only within SVG and the like; elsewhere a parser ignores it. So
/// many of them at once are not believed.
fn counted_depth(html: &str) -> usize {
    let (mut depth, mut deepest, mut closed_themselves) = (0_usize, 0, 0);
    for tag in Tags::new(html) {
        if tag.name.is_empty()
            || NOT_NESTING
                .iter()
                .any(|name| tag.name.eq_ignore_ascii_case(name))
        {
            continue;
        }
        if tag.closes_itself {
            closed_themselves += 1;
            if closed_themselves > MAX_CLOSED_THEMSELVES {
                return usize::MAX;
            }
            continue;
        }
        depth = if tag.ends {
            depth.saturating_sub(1)
        } else {
            depth + 1
        };
        deepest = deepest.max(depth);
    }
    deepest
}

/// The text between the tags, with line breaks in place of block elements and the commonest entities resolved.
fn strip_tags(html: &str) -> String {
    let mut text = String::with_capacity(html.len() / 2);
    let mut from = 0;
    let mut skipping: Option<&str> = None;
    for tag in Tags::new(html) {
        if skipping.is_none() {
            push_resolved(&html[from..tag.start], &mut text);
            let inline = [
                "a", "b", "i", "em", "strong", "span", "code", "sub", "sup", "u", "tt",
            ];
            if !inline
                .iter()
                .any(|name| tag.name.eq_ignore_ascii_case(name))
            {
                text.push('\n');
            }
        }
        from = tag.end;
        match skipping {
            Some(name) if tag.ends && tag.name.eq_ignore_ascii_case(name) => skipping = None,
            None if !tag.ends && !tag.closes_itself => {
                let raw = ["script", "style", "title", "template", "svg", "nav"];
                skipping = raw
                    .into_iter()
                    .find(|name| tag.name.eq_ignore_ascii_case(name));
            }
            _ => {}
        }
    }
    if skipping.is_none() {
        push_resolved(&html[from..], &mut text);
    }
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("\n")
}

fn push_resolved(text: &str, resolved: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        resolved.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity = rest
            .as_bytes()
            .iter()
            .take(12)
            .position(|byte| *byte == b';')
            .map(|end| &rest[1..end]);
        let character = match entity {
            Some("amp") => Some('&'),
            Some("lt") => Some('<'),
            Some("gt") => Some('>'),
            Some("quot") => Some('"'),
            Some("apos") => Some('\''),
            Some("nbsp") => Some(' '),
            Some(numeric) => numeric.strip_prefix('#').and_then(|number| {
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
                    None => number.parse(),
                };
                code.ok().filter(|code| *code != 0).and_then(char::from_u32)
            }),
            None => None,
        };
        match (character, entity) {
            (Some(character), Some(entity)) => {
                resolved.push(character);
                rest = &rest[entity.len() + 2..];
            }
            _ => {
                resolved.push('&');
                rest = &rest[1..];
            }
        }
    }
    resolved.push_str(rest);
}

/// A tag or a comment as it stands in a page.
struct Tag<'a> {
    /// Empty for a comment or a declaration.
    name: &'a str,
    ends: bool,
    closes_itself: bool,
    /// Bytes of the page.
    start: usize,
    end: usize,
}

/// The tags of a page, in order, as a lexer sees them, in linear time.
struct Tags<'a> {
    html: &'a str,
    at: usize,
}

impl<'a> Tags<'a> {
    fn new(html: &'a str) -> Self {
        Self { html, at: 0 }
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        loop {
            let start = self.at + self.html[self.at..].find('<')?;
            let rest = &self.html[start + 1..];
            let nameless = |length: usize| Tag {
                name: "",
                ends: true,
                closes_itself: true,
                start,
                end: start + 1 + length,
            };
            let tag = if let Some(comment) = rest.strip_prefix("!--") {
                nameless(comment.find("-->").map_or(rest.len(), |end| 3 + end + 3))
            } else if rest.starts_with(['!', '?']) {
                nameless(rest.find('>').map_or(rest.len(), |end| end + 1))
            } else {
                let ends = rest.starts_with('/');
                let named = &rest[usize::from(ends)..];
                if !named.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    // A lone "<", as in "a < b".
                    self.at = start + 1;
                    continue;
                }
                let length = named
                    .find(|c: char| c.is_ascii_whitespace() || matches!(c, '>' | '/'))
                    .unwrap_or(named.len());
                let close = rest.find('>').unwrap_or(rest.len());
                Tag {
                    name: &named[..length],
                    ends,
                    closes_itself: rest[..close].ends_with('/'),
                    start,
                    end: (start + 1 + close + 1).min(self.html.len()),
                }
            };
            self.at = tag.end;
            return Some(tag);
        }
    }
}
