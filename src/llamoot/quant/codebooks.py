"""The codebooks of the IQ types: which of all possible groups of small numbers a type may use.

A codebook is a list of groups of 8 values out of 3, or of 4 out of 8, in ascending order when a
group is read as digits, the first one lowest. So it is kept as a bitmap over all such numbers.
Source: iq2xxs_grid, iq2xs_grid, iq2s_grid, iq1s_grid, iq3xxs_grid and iq3s_grid in ggml-common.h
of llama.cpp (MIT licence).
"""

import base64
import zlib
from functools import cache

import numpy as np
import numpy.typing as npt

from llamoot.gguf.types import TensorType

_EIGHTS = (0x08, 0x19, 0x2B)
_SIGNS = (-1, 0, 1)
_ODD = (1, 3, 5, 7, 9, 11, 13, 15)
_FOURS = (0x04, 0x0C, 0x14, 0x1C, 0x24, 0x2C, 0x34, 0x3E)
_BOOKS = {  # the values a digit stands for, digits in a group; in the order of the bitmaps
    TensorType.IQ2_XXS: (_EIGHTS, 8),
    TensorType.IQ2_XS: (_EIGHTS, 8),
    TensorType.IQ2_S: (_EIGHTS, 8),
    TensorType.IQ1_S: (_SIGNS, 8),
    TensorType.IQ3_XXS: (_FOURS, 4),
    TensorType.IQ3_S: (_ODD, 4),
}

# The low 7 bits of index i are signs (1 is minus); the eighth makes their number even.
SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)
# What the 16 codes of IQ4_NL and IQ4_XS, and of MXFP4 and NVFP4 (E2M1, doubled) stand for.
NONLINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


@cache
def codebook(kind: TensorType) -> npt.NDArray[np.float32]:
    """(groups, 8) or (groups, 4) values of the codebook of `kind`; IQ1_M has that of IQ1_S."""
    bits = zlib.decompress(base64.b85decode(_BITMAPS))
    for book, (values, digits) in _BOOKS.items():
        n = len(values) ** digits
        here, bits = bits[: -(-n // 8)], bits[-(-n // 8) :]
        if book is kind:
            break
    numbers = np.flatnonzero(np.unpackbits(np.frombuffer(here, np.uint8), bitorder="little")[:n])
    places = numbers[:, None] // len(values) ** np.arange(digits) % len(values)
    groups: npt.NDArray[np.float32] = np.array(values, np.float32)[places]
    return groups


_BITMAPS = (
    "c-nPWO^h5z6@FDzp_+EEs+VrX;#AvShfX`PjBkWXwKXFd`_dCli@Q%Ipa^m1r`_y^ac_`f3j~5oyRnmTJ92^#$c!aN$|"
    "*z~K-_Y$z=sI04@kLyj6`@<)jd74IIWr8o_h7(``)YXy{gK?AeZAb1s04!0szwxfClphkV&2TKmw*S97i$7Zw5fXOi6J"
    "(2<$}nv04(kCty<IH0A>%_@a##KEzFwOruGsCA+V6;T}$m$l&n%A*-%C)8;4P&XQBg`gx#Jl<Iyq>vTGq`8Wg&HXjEs!"
    ")!>2A%k@4V=&k|{94*+(g0mWN?-^XBpHlL(kI1!<=A3m#Hz3j-2tN}YZlpR4wG!atk=c%N$oV!iS#hdg7k+dgJ;IR7Q^"
    "AkWV2ferdNt91C};=2-14AIVT%ot$P^4BeGA!I&SE5sGq5|@yO4St&kkf<}==(`LNHQmgo62pQPc0%<?>&q!QUWn_{gn"
    "AOtca3Jrr$ghXb{CQ)+7zMT7kD~OKc(ja8S5oVT8QA_s*QItXE_vthSCpKp~?c=g*;$At2uBQAA@VZ0o3<Arf@!C}#aT"
    "CX>WnN!2PDuLP$&^?xvbSmLfY{`ZUC1`BE@T*Ecq!=(Vxnw45fr%v*CtU~4n;#q=QXwd2i|n)wIMU$o4f{X(<@DSQa2#"
    "i8VbW~Xx;Hc>J5_UE{D><$~GD0NJI1*7hGA(!@L8sk!aSpBOP)QGGjLjNmsjIqcB-cgPAQFy~a;H6g$o~$u^z!Fk>ZSE"
    "*r#^yWFHV8X22rAlE?#hbx3_c9x<4BDdIDTe7*-LGOjZW_Q_4rg1*$mY_q;hrbBd6-^#;KQ|oD10Dv*@hoTH`}l8y6T;"
    "bKn&o+bA47i>O#{o;FgIFA6U}orMv+<ZKytThV9`v`aySjJ9*v7UfGkK;#=%l@Fla>9V89(Eu^y+)h%jO&lCIZwOrK4|"
    "Y04S#VU}T8IxPuPQ?DGx7{!J`zu&s7vX3yN%}%%~8(X3H#}ti;ISj@o8@xl9hRlR)aOJsc2H-?l+9N~*GH@a`^a%}_?3"
    "V@&hE@yyFXX^>f}qn{8H5hJ4H-qY^9}}Gx3K)0gd7oSX*q6lC=Co|IYXxF2Bnp)szcgrxTYgFXykeV_6a|j`Pge<;=p4"
    "w@WW0ESK05nOCK^ZqHNWnjL4WFtNp}U=7uYiTy|P^QDonE9Alr6Ltn1KHqDz1XAJ)k^O3zX*>CK!uTvek);R49lCI+(+"
    "Fx`Jbgc<!5|A!U`H5h!re~*O^0me5s%pL>5*6%aL8-=*6Ctl@spiK(l=T;qdVat4-fWLR1YY|_SqqI?+w&p|P`x@WepQ"
    "Pi!I5B3ojaS033=&*T2(JVva@I#@#tM4;uz3Z+{S8ADDOAo56gx6=+2eqPW$o?o*XRimq+hK%a8tg^csyIQj2Qol~h1-"
    "{%_4UB6YHX%ldL##UdhzFf7$*vOU|Y1wFoaS?!i;hA<i>evt(<5%(5lQJ<qql+C4v#<vr(hwrDw1e*vVtl{hwo6(CURA"
    "nNrpAI;N96Ruosx|?&^}Fg$yjWgu7vF=@6Eu$KE|hSts1M#t+7HzJGCKJ9?fw1N7T56i_xG#ubBQ{)tK%vWt@`j!P1L;"
    "m>-rxH3KWvX98^*7H%+{(i}H-Od~k31-zQCdvJsURA2e|N41MnDjf02(Jh?davj;zV^7LOne*cpnE+2mTKVSXq{TH5YJ"
    "^p(Y$@am~-B#RP94YU7w%mFAlY(7*>C&eQ@5V{Mkj0~R3uu{mZ>c|)SKcgRXyA?F%TNjd->usAK7H#!RewZ_@BH%ApYJ"
    "}Fr99O>jKja&WZ;=RC_%2Pvi<rpI<s4kiepeU7wKi}9+<IrO1sLfirb%hTXvOsEevglqP1=!n1g7<tJQ1w+O`1Ym5)A*"
    "w#C?JjVcu)qh9w!n<NEzMr(Tk*5D&GFTG>91Z~q+@9k4BK^JAwda;P%)|^K5gCp@hQ7tdr#gK3O`%bG~i7)-WKK)7IQD"
    "nla7m-M`ZBMob&8@l-LaMropgihU*|QYA^+h<}QgIXHm&V;HbEI_n&Zi2i0DXB&b<j{K&yC{80r(dth8qiN5zcqSJodD"
    "}5e%6cgCwjt#WIRL9&w7>dq{bO)KDc?uF?b)vVgdRRdZ6d+@^pc3Lf{u!t{6Qb})}qdphAjsHxXzRj>A7M%7wPn_=!vj"
    "DJY1-kk7~7X&9!*ExLaPZ(bXdK<cer!5em+(Y}y`ZFEJGs*@jHCnD)6gZL^@XB@y4NfHNp`d^o7kurcLNJ^Zz4g<L6WP"
    "O9oeUHojx*GrsC2Jj&-SeI0K^(+Zrb|kygweAu59d6_bpauk#zm|q=q)wfp_K>s|~a}|C=z)iD(6v+L?Sv-Nw=G?Qb0y"
    "H$8ss`Quk22@(74HzWUs2O|;j^O6@4nQyTXH3zJTXg~|?p*hTMh`-J1Jb#<N0vTl&d^$o3q~wOrMvAa&qteHTBo4qE<2"
    ")<1kgwXE0ePZ~{B~aPgcmRJD?3{Z<=4QwOy{t5f(9PLJ*I@w4i4`~$_gTY>=`4dsi-Ex+zeZm{G1A!NY5Oc#)KhMV)#>"
    "$3UeUNqE)<BQ?3{ueT5~V@ehvRKD)}0d1TjP+XBhzZBs!CymMedxD%N)^rp4dVkYtK9<U8W;1Kf}T*VzeVV1^>P?4I<?"
    ";`6Y_UtXZ!@C=wHcnT&S<vtFi5WE~)XV)POftm?k+fSVvyco%-Tg!L3)tDZid(k1Cotq_jK8;1jD}htI|fH2`YST)FP("
    "Iq1pfoYK<We"
)
