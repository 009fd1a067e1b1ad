//! Layers' names for pictures.

/// A layer's name without the words that all have: "down 0.1.0" is block 0, attention 1, transformer block 0.
pub(super) fn short_name(layer: &str) -> String {
    let (block, rest) = layer.split_once('.').unwrap_or((layer, ""));
    let block = block.trim_end_matches("_blocks").trim_end_matches("_block");
    let rest: Vec<&str> =
        rest.split('.').filter(|part| !matches!(*part, "attentions" | "transformer_blocks")).collect();
    format!("{block} {}", rest.join(".")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn names_lose_what_all_have() {
        assert_eq!(short_name("down_blocks.0.attentions.1.transformer_blocks.0"), "down 0.1.0");
        assert_eq!(short_name("mid_block.attentions.0.transformer_blocks.0"), "mid 0.0");
        assert_eq!(short_name("transformer_blocks.3"), "transformer 3");
    }
}
