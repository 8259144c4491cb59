/* bpe_impl.h - the tokenizer's tables, shared by bpe_load.c (fills them) and bpe.c (reads them). */
#ifndef CF_TEXT_BPE_IMPL_H
#define CF_TEXT_BPE_IMPL_H

#include <stddef.h>
#include <stdint.h>

#define BPE_NO_ID UINT32_MAX

/* One merge: the pair (left, right) becomes result; the lowest rank goes first. */
typedef struct merge_slot {
    uint32_t left; /* BPE_NO_ID: the slot is free */
    uint32_t right;
    uint32_t rank;
    uint32_t result;
} merge_slot;

struct tokenizer {
    size_t vocab_count;
    uint32_t byte_ids[256]; /* the id of each single byte */
    merge_slot *slots;      /* owned; open addressing, slot_mask + 1 of them, at most half full */
    size_t slot_mask;
};

/* Where the search for a pair begins; the next slot is the next to try. */
static inline size_t merge_hash(uint32_t left, uint32_t right)
{
    const uint64_t pair = (uint64_t)left << 32 | right;
    return (size_t)((pair * 0x9E3779B97F4A7C15ull) >> 32);
}

/* The slot of the pair, or the free slot where it would be. */
static inline merge_slot *merge_find(merge_slot *slots, size_t slot_mask, uint32_t left, uint32_t right)
{
    size_t i = merge_hash(left, right) & slot_mask;
    while (slots[i].left != BPE_NO_ID && (slots[i].left != left || slots[i].right != right))
        i = (i + 1) & slot_mask;
    return &slots[i];
}

#endif
