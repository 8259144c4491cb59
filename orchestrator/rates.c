/* rates.c - see rates.h. Fails: never. */
#include "orchestrator/rates.h"

#include "common/base/clock.h"

void rates_add(rates *r, uint64_t now_us, double audio_s)
{
    const uint64_t second = now_us / CLOCK_SECOND_US;
    const uint64_t i = second % RATES_SECONDS;
    if (r->slots[i].second != second) {
        r->slots[i].second = second;
        r->slots[i].count = 0;
        r->slots[i].audio_s = 0;
    }
    r->slots[i].count++;
    r->slots[i].audio_s += audio_s;
}

void rates_read(const rates *r, uint64_t since_us, uint64_t now_us, double *ret_count_per_s, double *ret_audio_per_s)
{
    const uint64_t second = now_us / CLOCK_SECOND_US;
    const uint64_t first = second < RATES_SECONDS ? 0 : second - RATES_SECONDS + 1;
    const uint64_t begin_us = first * CLOCK_SECOND_US > since_us ? first * CLOCK_SECOND_US : since_us;
    const uint64_t spent_us = clock_since_us(begin_us, now_us);
    /* One job in the first millisecond is no thousand a second. */
    const double spent_s = (double)(spent_us > CLOCK_SECOND_US ? spent_us : CLOCK_SECOND_US) / 1e6;
    double count = 0, audio_s = 0;
    for (int i = 0; i < RATES_SECONDS; i++)
        if (r->slots[i].second >= first && r->slots[i].second <= second) {
            count += (double)r->slots[i].count;
            audio_s += r->slots[i].audio_s;
        }
    *ret_count_per_s = count / spent_s;
    *ret_audio_per_s = audio_s / spent_s;
}
