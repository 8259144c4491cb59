/*
 * tensors.h - what the fuzz targets of model files share: everything a reader may be asked afterwards, and archives
 * around a bare pickle, so that the fuzzer need not guess the zip directory to get at the machine behind it.
 */
#ifndef CF_TESTS_FUZZ_TENSORS_H
#define CF_TESTS_FUZZ_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/model/byte_buf.h"
#include "common/model/tensor_table.h"

/* Reads every value of every tensor and asserts that all of them lie inside the file's bytes. */
void fuzz_use_tensors(const tensor_table *table, const uint8_t *data, size_t data_bytes);

/* A checkpoint with this data.pkl and records data/0 to data/3 of 2560 bytes each: any element type finds 80 columns
 * and 192 values in them. The caller owns it. */
void fuzz_wrap_pickle(const uint8_t *pickle, size_t pickle_bytes, byte_buf *ret_zip);

#endif
