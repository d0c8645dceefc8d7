#undef NAME
#undef JOIN2
#undef JOIN
#undef T
#undef SIGNED
#undef SIGN
#undef BLOCK
#undef STRIP
