/*
 * tiny_model.h - ordinary model directories that a test program makes for itself: the synthetic recipe, seed 0. A
 * program that uses them links $(MODEL).
 */
#ifndef CF_TESTS_HARNESS_TINY_MODEL_H
#define CF_TESTS_HARNESS_TINY_MODEL_H

/* Made at the first call (tiny: 15 MB, small: 48 MB) in a folder that test_temp_dir removes at the end; fails the
 * running test when that does not work. */
const char *tiny_model_dir(void);
const char *small_model_dir(void);

/* The tiny model as PyTorch checkpoints, and its Flow with the magnitudes of the released one (profile harsh). */
const char *tiny_model_pt_dir(void);
const char *tiny_model_harsh_dir(void);

#endif
