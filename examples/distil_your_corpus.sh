#!/usr/bin/env bash
# Distil a small reranker from any teacher on your own corpus, without labels. Needs the extras eval, dense, train, data.
#
#   bash examples/distil_your_corpus.sh CORPUS TEACHER OUTPUT
#   bash examples/distil_your_corpus.sh examples/collection.jsonl dense:sentence-transformers/all-MiniLM-L6-v2 distilled
#
# CORPUS: JSON lines of "_id", "title" and "text". TEACHER: dense:BI-ENCODER, ce:CROSS-ENCODER, or a ranker of tsarank.
# The environment may set QUERIES, LIST_SIZE, STEPS and STUDENT. Run it again to continue where it was interrupted.
set -euo pipefail
corpus=$1 teacher=$2 output=$3
mkdir -p "$output"

# 1. Queries: whole sentences of passages.
[ -e "$output/queries.jsonl" ] ||
    tsarank data queries cropped --corpus "$corpus" --count "${QUERIES:-40}" --output "$output/queries.jsonl"

# 2. BM25's candidates of every query, in the teacher's order. Scores are cached: none is asked for twice.
[ -e "$output/lists/data" ] ||
    tsarank data lists --corpus "$corpus" --queries "$output/queries.jsonl" --first-stages bm25 \
        --list-size "${LIST_SIZE:-8}" --teacher-scores "$teacher" --output "$output/lists"

# 3. The student: RankNet on that order, LoRA on two CPU cores. It begins as the released ranker: a plain language model,
#    such as STUDENT=smollm2-135m-instruct, needs thousands of lists. With a GPU, see `tsarank train distill --help`.
tsarank train distill --config smollm2-135m-distill-cpu --model_name_or_path "${STUDENT:-twolar-smollm2-135m-v2}" \
    --train_data "$output/lists/data" --max_steps "${STEPS:-60}" --output_dir "$output/student" \
    --resume_from_checkpoint auto

echo "the student: tsarank rank --model $output/student --query … --documents …"
