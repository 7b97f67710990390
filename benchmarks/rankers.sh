#!/usr/bin/env bash
# Every ranker on one collection: TREC-DL 2019, the 20 best of its BM25 run, SmolLM2-135M and what was trained from it,
# Gemma 3 270M, and two bi-encoders. An interrupted run goes on when started again.
#
#     TSARANK_DATA=… benchmarks/rankers.sh OUTPUT TEACHERS GEMMA.gguf
#     tsarank frontier OUTPUT/* --output benchmarks/results/rankers.json
#
# TEACHERS holds folders of all-MiniLM-L6-v2 and all-mpnet-base-v2. Rankers that are dear are measured on the first
# queries only; `tsarank frontier` compares each with BM25 on the same ones. QUERIES=3 measures all on three: for times,
# on a core that does nothing else.
set -euo pipefail
output=${1:?} teachers=${2:?} gemma=${3:?}
collection=${TSARANK_DATA:?}/beir/trec-dl-19
smollm=zero-shot

measure() {  # NAME QUERIES OPTIONS…
  local name=$1 queries=${QUERIES:-$2}
  shift 2
  [ -e "$output/$name/trec-dl-19/metrics.json" ] && return
  echo "$(date +%T) $name"
  tsarank evaluate --dataset "$collection" --first-stage "$collection/runs/bm25.top100.trec" --top-k 20 \
    --limit-queries "$queries" --dtype float32 --output "$output/$name" --quiet "$@"
}

measure twolar-v2 43 --model twolar-smollm2-135m-v2
measure first 43 --model $smollm --ranker first
measure attention 43 --model $smollm --ranker attention
measure setwise 10 --model $smollm --ranker setwise
measure query-likelihood 43 --model $smollm
measure listwise 10 --model $smollm --ranker listwise
measure minilm-bi-encoder 43 --model "dense:$teachers/all-minilm-l6-v2"
measure one-pass 43 --model twolar-smollm2-135m-v2 --ranker one-pass --ranker-options calibrate=true
measure gemma-first 10 --model "$gemma" --ranker first
measure pairwise 5 --model $smollm --ranker pairwise
measure twolar-then-setwise 10 --cascade 20:twolar-smollm2-135m-v2,5:setwise --model $smollm
measure mpnet-bi-encoder 43 --model "dense:$teachers/all-mpnet-base-v2"
measure tsarank 43 --model tsarank-smollm2-135m
[ -e "$output-true-false" ] || python -c "import sys, tsarank
tsarank.load_ranker('zero-shot', family='true_false_logits', dtype='float32').save_pretrained(sys.argv[1])" "$output-true-false"
measure true-false 43 --model "$output-true-false"
measure gemma-attention 10 --model "$gemma" --ranker attention
measure gemma-setwise 5 --model "$gemma" --ranker setwise
measure gemma-query-likelihood 10 --model "$gemma"
measure gemma-listwise 5 --model "$gemma" --ranker listwise
