/*
 * pt_crc32.c - checksum of zip records, slicing by 8. Any thread; state is the caller's. Fails: never.
 * Source: APPNOTE.TXT 4.4.7 (CRC-32 of ISO 3309); Kounavis and Berry 2005 for the slicing.
 */
#include <string.h>

#include "common/model/pt_impl.h"

void pt_crc32_init(pt_crc32 *c)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        c->table[0][i] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int i = 0; i < 256; i++) {
            const uint32_t below = c->table[slice - 1][i];
            c->table[slice][i] = below >> 8 ^ c->table[0][below & 0xFF];
        }
    c->value = 0xFFFFFFFFu;
}

void pt_crc32_add(pt_crc32 *c, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    uint32_t crc = c->value;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint32_t low;
        uint32_t high;
        memcpy(&low, p, 4);
        memcpy(&high, p + 4, 4);
        low ^= crc;
        crc = c->table[7][low & 0xFF] ^ c->table[6][low >> 8 & 0xFF] ^ c->table[5][low >> 16 & 0xFF] ^
              c->table[4][low >> 24] ^ c->table[3][high & 0xFF] ^ c->table[2][high >> 8 & 0xFF] ^
              c->table[1][high >> 16 & 0xFF] ^ c->table[0][high >> 24];
    }
    for (; bytes > 0; bytes--, p++)
        crc = crc >> 8 ^ c->table[0][(crc ^ *p) & 0xFF];
    c->value = crc;
}

uint32_t pt_crc32_take(pt_crc32 *c)
{
    const uint32_t sum = c->value ^ 0xFFFFFFFFu;
    c->value = 0xFFFFFFFFu;
    return sum;
}
