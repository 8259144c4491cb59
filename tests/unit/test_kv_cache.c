/* test_kv_cache.c - pages: claims for the worst case, lending as tokens arrive, giving back, refusals. */
#include "tests/harness/test.h"

#include "common/base/rng.h"
#include "llm_worker/kv_cache.h"

typedef struct fixture {
    backend *be;
    kv_cache *cache;
} fixture;

static fixture open_cache(int32_t sequences_max, int32_t pages)
{
    fixture f = {0};
    const backend_config be_cfg = {.device = "cpu", .naive = true, .threads = 1, .scratch_bytes = 1 << 20};
    const kv_cache_config cfg = {.layers = 2, .kv_heads = 1, .sequences_max = sequences_max, .pages = pages};
    assert_ok(backend_open(&be_cfg, &f.be));
    assert_ok(kv_cache_open(f.be, &cfg, &f.cache));
    return f;
}

static void close_cache(fixture f)
{
    kv_cache_close(f.cache);
    backend_close(f.be);
}

static int32_t claim(kv_cache *c, int32_t tokens_max)
{
    int32_t seq = -1;
    assert_ok(kv_cache_claim(c, tokens_max, &seq));
    return seq;
}

static void grow(kv_cache *c, int32_t seq, int32_t tokens)
{
    kv_cache_extend(c, seq, tokens);
    kv_cache_advance(c, seq, tokens);
}

static void test_plan_counts_every_layer(void **state)
{
    (void)state;
    const kv_cache_config cfg = {.layers = 24, .kv_heads = 2, .sequences_max = 1, .pages = 10};
    assert_int_equal(kv_cache_plan_bytes(&cfg), 10 * 64 * 24576); /* llm.md 5: 24,576 bytes a token */
    fixture f = open_cache(2, 3);
    const tensor *layer = kv_cache_layer(f.cache, 1);
    assert_int_equal(tensor_count(layer), 3 * 2 * 1 * 64 * 64);
    close_cache(f);
}

static void test_refusals(void **state)
{
    (void)state;
    fixture f = open_cache(2, 4);
    int32_t seq = -7;
    assert_err(CF_ERR_LIMIT, "needs 5 cache pages: the pool has 4", kv_cache_claim(f.cache, 4 * 64 + 1, &seq));
    assert_err(CF_ERR_LIMIT, "SEQUENCE_TOKENS_MAX", kv_cache_claim(f.cache, SEQUENCE_TOKENS_MAX + 1, &seq));
    const int32_t a = claim(f.cache, 3 * 64);
    assert_err(CF_ERR_BUSY, "needs 2 cache pages: 1 of 4", kv_cache_claim(f.cache, 65, &seq));
    const int32_t b = claim(f.cache, 64);
    assert_err(CF_ERR_BUSY, "all 2 sequences", kv_cache_claim(f.cache, 1, &seq));
    assert_int_equal(seq, -7);
    kv_cache_give_back(f.cache, a);
    assert_int_equal(kv_cache_pages_unclaimed(f.cache), 3);
    kv_cache_give_back(f.cache, claim(f.cache, 65)); /* what was busy fits now */
    kv_cache_give_back(f.cache, b);
    close_cache(f);
}

static void test_claims_hold_without_being_used(void **state)
{
    (void)state;
    fixture f = open_cache(3, 6);
    const int32_t a = claim(f.cache, 6 * 64 - 1);
    int32_t seq, lent;
    assert_err(CF_ERR_BUSY, "0 of 6", kv_cache_claim(f.cache, 1, &seq));
    (void)kv_cache_pages(f.cache, a, &lent);
    assert_int_equal(lent, 0); /* a claim lends nothing yet */
    grow(f.cache, a, 64);
    (void)kv_cache_pages(f.cache, a, &lent);
    assert_int_equal(lent, 1);
    grow(f.cache, a, 1);
    (void)kv_cache_pages(f.cache, a, &lent);
    assert_int_equal(lent, 2);
    assert_int_equal(kv_cache_past(f.cache, a), 65);
    assert_int_equal(kv_cache_pages_touched(f.cache), 2);
    kv_cache_give_back(f.cache, a);
    close_cache(f);
}

static void test_used_pages_are_lent_again_first(void **state)
{
    (void)state;
    fixture f = open_cache(4, 100);
    for (int round = 0; round < 50; round++) {
        const int32_t a = claim(f.cache, 40 * 64), b = claim(f.cache, 40 * 64);
        grow(f.cache, a, 130);
        grow(f.cache, b, 70);
        kv_cache_give_back(f.cache, round % 2 ? a : b);
        kv_cache_give_back(f.cache, round % 2 ? b : a);
    }
    assert_int_equal(kv_cache_pages_touched(f.cache), 5); /* what two sequences used at once, not what they claimed */
    close_cache(f);
}

#define SEQUENCES 8
#define PAGES     60

/* No page may belong to two sequences, lent pages never change, counters balance. */
static void test_random_life(void **state)
{
    (void)state;
    fixture f = open_cache(SEQUENCES, PAGES);
    int32_t seqs[SEQUENCES], tokens_max[SEQUENCES], used[SEQUENCES] = {0}, held = 0;
    for (uint32_t n = 0; n < 20000; n++) {
        const uint32_t what = (uint32_t)(rng_uniform(5, 0, n, 0) * 10);
        const int32_t pick = held ? (int32_t)(rng_uniform(5, 0, n, 1) * (float)held) : -1;
        if (what < 2) {
            int32_t seq;
            const int32_t want = 1 + (int32_t)(rng_uniform(5, 0, n, 2) * 1500);
            if (kv_cache_claim(f.cache, want, &seq) != CF_OK)
                continue;
            seqs[held] = seq;
            tokens_max[held] = want;
            used[held++] = 0;
        } else if (what < 4 && pick >= 0) {
            kv_cache_give_back(f.cache, seqs[pick]);
            held--;
            seqs[pick] = seqs[held];
            tokens_max[pick] = tokens_max[held];
            used[pick] = used[held];
        } else if (pick >= 0 && used[pick] < tokens_max[pick]) {
            const int32_t left = tokens_max[pick] - used[pick];
            const int32_t more = 1 + (int32_t)(rng_uniform(5, 0, n, 3) * (float)(left < 100 ? left : 100)) % left;
            grow(f.cache, seqs[pick], more);
            used[pick] += more;
        }
        int owner[PAGES] = {0};
        int32_t unclaimed = PAGES;
        for (int32_t i = 0; i < held; i++) {
            int32_t lent;
            const int32_t *pages = kv_cache_pages(f.cache, seqs[i], &lent);
            assert_int_equal(lent, (used[i] + 63) / 64);
            for (int32_t p = 0; p < lent; p++)
                assert_int_equal(owner[pages[p]]++, 0);
            unclaimed -= (tokens_max[i] + 63) / 64;
        }
        assert_int_equal(kv_cache_pages_unclaimed(f.cache), unclaimed);
    }
    while (held > 0)
        kv_cache_give_back(f.cache, seqs[--held]);
    close_cache(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_counts_every_layer),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_claims_hold_without_being_used),
        cmocka_unit_test(test_used_pages_are_lent_again_first),
        cmocka_unit_test(test_random_life),
    };
    return cmocka_run_group_tests_name("kv_cache", tests, NULL, NULL);
}
