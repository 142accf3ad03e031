import numpy as np
def face_landmarks(v, f, weights, JOINT, mirror, expressions):
    i=np.where((f==9120).any(1))[0][0]
    return {"lmk_faces_idx":np.full(51,i),"lmk_bary_coords":np.full((51,3),1/3,np.float32),"dynamic_lmk_faces_idx":np.full((79,17),i),"dynamic_lmk_bary_coords":np.full((79,17,3),1/3,np.float32)}
