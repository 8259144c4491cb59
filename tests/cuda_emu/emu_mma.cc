// emu_mma.cc - the twin of the warp's matrix product: every lane shows its values and sums its four results in f32.
#include "common/compute/cuda/ptx.cuh"

#include "emu_impl.hh"

// Values of a lane's registers, two in each; depth 8 has half of them.
typedef struct fragment {
    float a[8], b[4];
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

static void widen(const uint32_t *registers, int count, float *ret_values)
{
    const float *half = half_table();
    for (int i = 0; i < count; i++) {
        ret_values[2 * i] = half[registers[i] & 0xFFFFu];
        ret_values[2 * i + 1] = half[registers[i] >> 16];
    }
}

void emu_mma_f16(float c[4], const uint32_t *a, const uint32_t *b, int depth)
{
    if (depth == 16 && emu_code() < 80)
        emu_refuse("mma.m16n8k16");
    fragment mine;
    widen(a, depth / 4, mine.a);
    widen(b, depth / 8, mine.b);
    const void *const *lanes = emu_gather(&mine);
    const int row = emu_lane() / 4, column = emu_lane() % 4 * 2;
    for (int k = 0; k < depth; k++) { // results: this row and the eighth after it, this column and the next
        const int of_b = k / 8 * 2 + k % 2, of_a = k / 8 * 4 + k % 2;
        const fragment *left = (const fragment *)lanes[row * 4 + k % 8 / 2];
        const float *x = left->a + of_a;
        const float y = ((const fragment *)lanes[column * 4 + k % 8 / 2])->b[of_b];
        const float next = ((const fragment *)lanes[(column + 1) * 4 + k % 8 / 2])->b[of_b];
        c[0] += x[0] * y;
        c[1] += x[0] * next;
        c[2] += x[2] * y;
        c[3] += x[2] * next;
    }
    emu_gather_done();
}
