// emu_mma.cc - the twin of the warp's matrix product: every lane shows its registers and sums its four results in f32.
#include "common/compute/cuda/ptx.cuh"

#include "emu_impl.hh"

// Registers of a lane; depth 8 has half of them.
typedef struct fragment {
    const uint32_t *a, *b;
} fragment;

// fp16 values by their bits.
static const float *half_table()
{
    static float table[1 << 16];
    static bool filled;
    for (uint32_t i = 0; !filled && i < 1 << 16; i++)
        table[i] = f16_to_f32_soft((uint16_t)i);
    filled = true;
    return table;
}

void emu_mma_f16(float c[4], const uint32_t *a, const uint32_t *b, int depth)
{
    const float *half = half_table();
    const fragment mine = {a, b};
    if (depth == 16 && emu_code() < 80)
        emu_refuse("mma.m16n8k16");
    const void *const *lanes = emu_gather(&mine);
    for (int i = 0; i < 4; i++) {
        const int row = emu_lane() / 4 + i / 2 * 8, column = emu_lane() % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < depth; k++) {
            const fragment *left = (const fragment *)lanes[row % 8 * 4 + k % 8 / 2];
            const fragment *right = (const fragment *)lanes[column * 4 + k % 8 / 2];
            const uint32_t x = left->a[row / 8 + k / 8 * 2] >> (k % 2 * 16) & 0xFFFFu;
            const uint32_t y = right->b[k / 8] >> (k % 2 * 16) & 0xFFFFu;
            sum += half[x] * half[y];
        }
        c[i] = sum;
    }
    emu_gather_done();
}
