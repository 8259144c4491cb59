/*
 * tiny_model.c - synthetic model directories for tests, one of each kind a program. Fails: the running test.
 */
#include "tests/harness/tiny_model.h"

#include <stdio.h>

#include "common/base/io.h"
#include "common/model/recipe.h"
#include "tests/harness/test.h"

typedef struct made {
    char path[IO_PATH_BYTES]; /* empty until made */
    recipe recipe;
    recipe_format format;
} made;

static const char *make_once(made *m)
{
    if (m->path[0] == '\0') {
        char path[IO_PATH_BYTES];
        snprintf(path, sizeof path, "%s", test_temp_dir());
        assert_ok(recipe_make_dir(&m->recipe, m->format, NULL, path));
        snprintf(m->path, sizeof m->path, "%s", path);
    }
    return m->path;
}

const char *tiny_model_dir(void)
{
    static made m = {.recipe = {.size = RECIPE_TINY}};
    return make_once(&m);
}

const char *small_model_dir(void)
{
    static made m = {.recipe = {.size = RECIPE_SMALL}};
    return make_once(&m);
}

const char *tiny_model_pt_dir(void)
{
    static made m = {.recipe = {.size = RECIPE_TINY}, .format = RECIPE_PT};
    return make_once(&m);
}

const char *tiny_model_harsh_dir(void)
{
    static made m = {.recipe = {.size = RECIPE_TINY, .harsh = true}};
    return make_once(&m);
}
