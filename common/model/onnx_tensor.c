/*
 * onnx_tensor.c - one TensorProto: shape, element type, where its numbers lie. Part of onnx.h's reader.
 *
 * Numbers are taken from raw_data or from one packed float_data field as they lie; a float_data list in pieces is put
 * together in the object's arena. Integer lists are counted out as "not read": nothing here needs them.
 * Fails: CF_ERR_INVALID, CF_ERR_UNSUPPORTED, CF_ERR_LIMIT, each naming the tensor. Source: onnx/onnx.proto TensorProto.
 */
#include <string.h>

#include "common/model/onnx_impl.h"

enum { DIMS = 1, DATA_TYPE = 2, SEGMENT = 3, FLOAT_DATA = 4, NAME = 8, RAW_DATA = 9, EXTERNAL = 13, LOCATION = 14 };

static const struct {
    onnx_type type;
    const char *name;
    size_t bytes;
} TYPES[] = {{ONNX_F32, "f32", 4}, {ONNX_U8, "u8", 1},   {ONNX_I8, "i8", 1},
             {ONNX_I32, "i32", 4}, {ONNX_I64, "i64", 8}, {ONNX_BOOL, "bool", 1},
             {ONNX_F16, "f16", 2}, {ONNX_F64, "f64", 8}, {ONNX_BF16, "bf16", 2}};

static int type_idx(uint64_t number)
{
    for (int i = 0; i < (int)(sizeof TYPES / sizeof *TYPES); i++)
        if ((uint64_t)TYPES[i].type == number)
            return i;
    return -1;
}

const char *onnx_type_name(onnx_type type)
{
    const int idx = type_idx((uint64_t)type);
    return idx >= 0 ? TYPES[idx].name : "?";
}

size_t onnx_type_bytes(onnx_type type)
{
    const int idx = type_idx((uint64_t)type);
    return idx >= 0 ? TYPES[idx].bytes : 0;
}

/* What was seen of a tensor while its fields passed by. */
typedef struct tensor_draft {
    onnx_tensor t;
    uint64_t data_type;
    wire_bytes raw, floats; /* floats: the first piece */
    size_t float_bytes, float_pieces;
    const char *external;    /* where its data are said to be */
    bool has_raw, has_other; /* other: int32, int64, double, uint64 lists */
    bool is_external;
} tensor_draft;

static cf_err add_dim(tensor_draft *d, uint64_t size)
{
    if (d->t.rank == ONNX_RANK_MAX)
        return err_set(CF_ERR_LIMIT, "more than %d dimensions", ONNX_RANK_MAX);
    if (size > (uint64_t)ONNX_COUNT_MAX)
        return err_set(CF_ERR_INVALID, "dimension %d is %lld", d->t.rank, (long long)size);
    d->t.dims[d->t.rank++] = (int64_t)size;
    return CF_OK;
}

static cf_err add_dims(tensor_draft *d, const wire_field *f)
{
    cf_err err = CF_OK;
    if (f->kind == WIRE_VARINT)
        return add_dim(d, f->value);
    wire_bytes packed = f->bytes;
    while (!onnx_wire_ends(&packed)) {
        uint64_t size;
        TRY(onnx_wire_varint(&packed, &size));
        TRY(add_dim(d, size));
    }
out:
    return err;
}

/* StringStringEntryProto: only the location is worth telling. */
static cf_err note_external(onnx *o, tensor_draft *d, wire_bytes entry)
{
    cf_err err = CF_OK;
    const char *key = "", *value = "";
    while (!onnx_wire_ends(&entry)) {
        wire_field f;
        TRY(onnx_wire_next(&entry, &f));
        if (f.kind == WIRE_BYTES && (f.number == 1 || f.number == 2))
            TRY(onnx_take_text(o, &f.bytes, f.number == 1 ? &key : &value));
    }
    d->is_external = true;
    if (strcmp(key, "location") == 0)
        d->external = value;
out:
    return err;
}

static cf_err take_tensor_field(onnx *o, const wire_field *f, tensor_draft *d)
{
    const bool is_bytes = f->kind == WIRE_BYTES;
    switch (f->number) {
    case DIMS:
        return is_bytes || f->kind == WIRE_VARINT ? add_dims(d, f) : CF_OK;
    case DATA_TYPE:
        d->data_type = f->kind == WIRE_VARINT ? f->value : 0;
        return CF_OK;
    case SEGMENT:
        return err_set(CF_ERR_UNSUPPORTED, "stored in segments");
    case FLOAT_DATA:
        if (is_bytes && d->float_pieces == 0)
            d->floats = f->bytes;
        d->float_pieces++;
        d->float_bytes += is_bytes ? onnx_wire_left(&f->bytes) : 4;
        return CF_OK;
    case NAME:
        return is_bytes && !d->t.name ? onnx_take_text(o, &f->bytes, &d->t.name) : CF_OK;
    case RAW_DATA:
        d->has_raw = is_bytes;
        d->raw = f->bytes;
        return CF_OK;
    case EXTERNAL:
        return is_bytes ? note_external(o, d, f->bytes) : CF_OK;
    case LOCATION:
        d->is_external = d->is_external || f->value != 0;
        return CF_OK;
    case 5:  /* int32_data */
    case 7:  /* int64_data */
    case 10: /* double_data */
    case 11: /* uint64_data */
        d->has_other = true;
        return CF_OK;
    case 6: /* string_data */
        return err_set(CF_ERR_UNSUPPORTED, "holds texts");
    default:
        return CF_OK;
    }
}

static cf_err count_elements(tensor_draft *d)
{
    d->t.count = 1;
    for (int i = 0; i < d->t.rank; i++)
        if (__builtin_mul_overflow(d->t.count, d->t.dims[i], &d->t.count) || d->t.count > ONNX_COUNT_MAX)
            return err_set(CF_ERR_INVALID, "its dimensions multiply to more than %lld elements",
                           (long long)ONNX_COUNT_MAX);
    return CF_OK;
}

/* Puts a float_data list in pieces together: walks the message again, copying. */
static cf_err join_floats(onnx *o, wire_bytes w, tensor_draft *d)
{
    cf_err err = CF_OK;
    unsigned char *joined;
    size_t at = 0;
    TRY(arena_take(&o->texts, d->float_bytes, &joined));
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number != FLOAT_DATA)
            continue;
        if (f.kind == WIRE_BYTES) {
            memcpy(joined + at, f.bytes.at, onnx_wire_left(&f.bytes));
            at += onnx_wire_left(&f.bytes);
        } else {
            for (int i = 0; i < 4; i++)
                joined[at++] = (unsigned char)(f.value >> (8 * i));
        }
    }
    d->t.data = joined;
out:
    return err;
}

/* Exactly one form of payload, of the right size. */
static cf_err find_payload(onnx *o, wire_bytes w, tensor_draft *d)
{
    const int idx = type_idx(d->data_type);
    const bool has_floats = d->float_pieces > 0;
    if (d->is_external)
        return err_set(CF_ERR_UNSUPPORTED,
                       "keeps its data in another file (%.200s); expected them inside: save the "
                       "model as one file",
                       d->external ? d->external : "not named");
    if (idx < 0)
        return err_set(CF_ERR_UNSUPPORTED, "element type %llu", (unsigned long long)d->data_type);
    d->t.type = TYPES[idx].type;
    if (d->has_raw + has_floats + d->has_other > 1)
        return err_set(CF_ERR_INVALID, "more than one list of numbers");
    if (has_floats && d->t.type != ONNX_F32)
        return err_set(CF_ERR_INVALID, "f32 numbers in a tensor of %s", TYPES[idx].name);
    const uint64_t wanted = (uint64_t)d->t.count * TYPES[idx].bytes; /* at most 2^43 */
    const uint64_t found = d->has_raw ? onnx_wire_left(&d->raw) : d->float_bytes;
    if (!d->has_other && found != wanted)
        return err_set(CF_ERR_INVALID, "%llu bytes of data, its shape needs %llu", (unsigned long long)found,
                       (unsigned long long)wanted);
    if (d->has_raw)
        d->t.data = d->raw.at;
    else if (has_floats && d->float_pieces == 1 && d->floats.at)
        d->t.data = d->floats.at;
    else if (has_floats)
        return join_floats(o, w, d);
    return CF_OK;
}

cf_err onnx_read_tensor(onnx *o, wire_bytes w, const char *name_override, onnx_tensor *ret_tensor)
{
    cf_err err = CF_OK;
    wire_bytes rest = w;
    tensor_draft d = {.t = {.name = name_override, .is_constant = name_override != NULL}};

    while (!onnx_wire_ends(&rest)) {
        wire_field f;
        TRY(onnx_wire_next(&rest, &f));
        TRY(take_tensor_field(o, &f, &d));
    }
    if (!d.t.name || d.t.name[0] == '\0')
        FAIL(CF_ERR_INVALID, "has no name");
    TRY(count_elements(&d));
    TRY(find_payload(o, w, &d));
    *ret_tensor = d.t;
out:
    if (err != CF_OK)
        err = err_context(err, "tensor %.120s", d.t.name && d.t.name[0] ? d.t.name : "at the end of the list");
    return err;
}
