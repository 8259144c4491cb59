/*
 * recipe_vocab.c - the merges of the tiny vocabulary that tiny and small synthetic models carry: data, any process.
 *
 * One "left right" pair a line in the order of their rank, as merges.txt has them; G-with-dot (U+0120) is the space of
 * the byte alphabet. Token 256 + k is what merge k makes. Fails: never. Source: synthetic.md 4.
 */
#include "common/model/recipe_impl.h"

/* clang-format off */
const char RECIPE_TINY_MERGES[] =
    "h e\n\304\240 t\n\304\240 w\n\304\240 a\n\304\240t he\ni n\n\304\240 s\ne r\nh a\no r\no u\n\304\240 l\no n\n"
    "s t\n\304\240 b\n\304\240 c\n\304\240 i\n\304\240a n\nf or\nr e\n\304\240 o\n\304\240w a\nin g\nv er\n"
    "\304\240 ha\n\304\240an d\nc e\ne d\nl l\nm e\nn o\n\304\240 for\n\304\240 no\n\304\240b e\ne a\nl d\n"
    "\304\240 e\n\304\240i t\n\304\240no t\n\304\240o f\n\304\240s t\na in\nha n\nha t\nhe r\nhe re\ni ll\ni t\n"
    "n t\no p\no w\non e\non g\nou r\nt er\nt her\nver y\n\304\240 d\n\304\240 h\n\304\240 m\n\304\240 p\n"
    "\304\240 r\n\304\240a s\n\304\240c a\n\304\240e very\n\304\240ha d\n\304\240i s\n\304\240s a\n\304\240t o\n"
    "\304\240w or\na k\nak e\nce s\ne n\ne t\nf u\nfor e\ng e\ng h\nhe n\ni st\nin e\nl e\nl y\nn ing\nnt ed\no i\n"
    "o me\nou ld\nq u\nr y\ns e\nv oi\ny ou\n\304\240 I\n\304\240 T\n\304\240 in\n\304\240 on\n\304\240 qu\n"
    "\304\240 voi\n\304\240 you\n\304\240a t\n\304\240b u\n\304\240be fore\n\304\240l a\n\304\240l ong\n"
    "\304\240m or\n\304\240o ver\n\304\240t hat\n\304\240w ill\n\304\240wa s\n\304\240wa ter\nC ould\nD o\nH e\n"
    "N o\nNo b\nNob o\nNobo d\nNobod y\nP l\nPl ea\nPlea se\nS he\nS ome\nT he\nT here\nW e\nW hen\nY ou\na c\n"
    "a ces\na d\na ge\na nt\na t\na w\nac h\nach ine\nain s\naw n\nb ou\nb our\nbou t\nc k\ne ll\ne op\ne p\ne s\n"
    "e st\ne y\nea k\nea r\nea ther\near n\neop le\nep s\ner e\ner ed\ner s\nes s\nest i\nesti on\nestion s\n"
    "f ered\nf i\nfi r\nfir st\nfu l\nfu r\nfur ther\ng ain\ngh t\nght s\nh i\nh ing\nh re\nhan ge\nhan k\nhe l\n"
    "he ther\nhel p\nhelp ful\nhi s\nhre e\ni d\ni et\ni ghts\ni me\ni ver\nin ce\nin d\nin ter\ning s\nist ant\n"
    "ist en\nit h\nit ing\nit t\nitt le\nj our\njour n\njourn ey\nk ed\nk ind\nl aces\nl o\nl ong\nl ow\nl t\n"
    "ll ing\nlo ck\nlong s\nlow ly\nn d\nn ou\nnou gh\no at\no f\no ld\no of\nop p\nop s\nopp ed\nou nted\nou se\n"
    "our s\now n\np eak\nr ain\nr bour\nr m\nr ning\nr ry\nre ad\ns istant\ns w\nst ops\nsw ers\nu re\nu s\nv e\n"
    "w ake\n\304\240 Do\n\304\240 Nobody\n\304\240 Please\n\304\240 Some\n\304\240 We\n\304\240 You\n"
    "\304\240 first\n\304\240 further\n\304\240 helpful\n\304\240 here\n\304\240 journey\n\304\240 kind\n";
/* clang-format on */
