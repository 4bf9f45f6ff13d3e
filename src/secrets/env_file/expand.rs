//! `$NAME` and `${NAME…}` in a value, with the operators that Compose knows.

/// Defaults may hold references with defaults; deeper than this nobody means it.
const MAX_DEPTH: usize = 32;

/// Replaces references by what `lookup` knows; `$$` is a `$`, and so is one that no name or brace follows.
pub(super) struct Expansion<'a> {
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
    pub(super) blank_unset: bool,
}

impl Expansion<'_> {
    /// # Errors
    /// What is wrong and the way out, without a value.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        self.expand_at_depth(text, 0)
    }

    fn expand_at_depth(&self, text: &str, depth: usize) -> Result<String, String> {
        if depth > MAX_DEPTH {
            return Err(format!("references lie more than {MAX_DEPTH} deep in each other"));
        }
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                expanded.push('$');
                rest = after;
            } else if let Some(inner) = after.strip_prefix('{') {
                let end = closing_brace(inner).ok_or("`${` without a `}`: write `$${` for a literal one")?;
                expanded.push_str(&self.braced(&inner[..end], depth)?);
                rest = &inner[end + 1..];
            } else {
                let name = leading_name(after);
                if name.is_empty() {
                    expanded.push('$');
                } else {
                    expanded.push_str(&self.plain(name)?);
                }
                rest = &after[name.len()..];
            }
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn plain(&self, name: &str) -> Result<String, String> {
        match (self.lookup)(name) {
            Some(value) => Ok(value),
            None if self.blank_unset => Ok(String::new()),
            None => Err(format!(
                "the variable `{name}` is used but nobody sets it: set it, or write `$$` (or put the value in single quotes) where a literal `$` is meant"
            )),
        }
    }

    fn braced(&self, inner: &str, depth: usize) -> Result<String, String> {
        let name = leading_name(inner);
        let operation = &inner[name.len()..];
        if name.is_empty() {
            return Err("`${` without a name after it: write `$${` for a literal one".to_owned());
        }
        if operation.is_empty() {
            return self.plain(name);
        }
        let (empty_counts_as_unset, operation) =
            operation.strip_prefix(':').map_or((false, operation), |operation| (true, operation));
        let mut characters = operation.chars();
        let operator = characters.next();
        let word = characters.as_str();
        let value = (self.lookup)(name).filter(|value| !(empty_counts_as_unset && value.is_empty()));
        match (operator, value) {
            (Some('-'), Some(value)) | (Some('?'), Some(value)) => Ok(value),
            (Some('-'), None) | (Some('+'), Some(_)) => self.expand_at_depth(word, depth + 1),
            (Some('+'), None) => Ok(String::new()),
            (Some('?'), None) => Err(format!("the variable `{name}` is required but nobody sets it")),
            _ => Err(format!(
                "`${{{name}` is followed by something that is no operator: write `$${{` for a literal `${{`"
            )),
        }
    }
}

/// `[A-Za-z_][A-Za-z0-9_]*` at the start, perhaps empty.
fn leading_name(text: &str) -> &str {
    let is_name =
        |(index, byte): (usize, u8)| byte == b'_' || byte.is_ascii_alphabetic() || index > 0 && byte.is_ascii_digit();
    let length = text.bytes().enumerate().take_while(|part| is_name(*part)).count();
    &text[..length]
}

/// Where the brace that was opened before `inner` is closed.
fn closing_brace(inner: &str) -> Option<usize> {
    let mut open = 1_usize;
    for (index, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(index);
        }
    }
    None
}
